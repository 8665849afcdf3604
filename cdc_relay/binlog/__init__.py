"""Reading MySQL's binlog: from the bytes of a dump connection to the outbox rows of whole transactions.

Follow one row: ``connection`` (who sends it) → ``source`` (bytes to events) → ``transactions`` (events to whole
transactions; ``payload`` unwraps compressed ones) → ``table_map`` and ``rows`` (bytes to ``OutboxRow``).
``events`` holds the frame grammar as named constants, ``position`` the place in the binlog.
"""
