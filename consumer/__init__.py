"""The second program: reads the outbox's records from Kafka, writes their effect, and marks the rows consumed.

Read in this order: ``worker`` (the way of a record, top to bottom), ``plan`` (what becomes of each record of a batch),
``delivery`` and ``registry`` (a record as it is understood), ``handlers`` (the effects), then the adapters: ``source``
(Kafka), ``unit_of_work`` (MySQL), ``dead_letter``; ``service`` puts them together.
"""
