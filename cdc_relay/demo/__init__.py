"""``cdc-relay demo``: the whole way, on servers of its own, and a verdict that no program under test has a say in.

Read in this order: ``application`` (who writes), ``observer`` (who reads Kafka beside the consumer), ``programs`` (what
is under test), ``verdict`` (what counts as right), ``show`` (what one sees meanwhile), ``round`` (all of it).
"""
