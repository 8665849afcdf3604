"""The contract with the application that the relay and the consumer share (design: the table is the truth).

Read in this order: ``status`` (the life of a row), ``table`` (its columns), ``row`` and ``envelope`` (what it is in
memory and in Kafka), ``backoff`` and ``clock`` (when it is tried again), ``statements`` (every SQL statement on it),
``enqueue`` (how a Python application writes one).
"""
