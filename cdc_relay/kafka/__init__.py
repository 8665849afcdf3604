"""The Kafka side of the relay."""
