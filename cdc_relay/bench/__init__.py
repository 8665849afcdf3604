"""Measuring the relay on real servers: ``cdc-relay bench`` on the user's own, ``tests/benchmarks`` on throwaway ones.

Read in this order: ``place`` (a database and a topic of its own, and their end), ``settings`` and ``relay`` (the
program under test), ``catchup`` and ``latency`` (what is measured), ``figures`` (what came out), ``run`` (all of it,
for the command).
"""
