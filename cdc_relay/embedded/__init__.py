"""Throwaway servers for the demo, the tests and a developer's own machine: no Docker, no root, nothing left behind."""
