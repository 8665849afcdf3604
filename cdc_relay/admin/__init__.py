"""What operators and their monitoring see of a running program: ``server`` (HTTP) and ``page`` (HTML)."""
