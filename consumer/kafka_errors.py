"""Kafka's errors in our terms."""

from __future__ import annotations

from confluent_kafka import KafkaError as Reported

from cdc_relay.errors import KafkaError, KafkaUnavailable

#: Waiting does not cure these; what the operator can do.
_HINTS: dict[int, str] = {
    Reported._AUTHENTICATION: "Check security.protocol, sasl.* and ssl.* in kafka.properties",
    Reported.SASL_AUTHENTICATION_FAILED: "Check sasl.username and sasl.password in kafka.properties",
    Reported.UNSUPPORTED_SASL_MECHANISM: "Check sasl.mechanism in kafka.properties",
    Reported.TOPIC_AUTHORIZATION_FAILED: "Allow this user to READ the topic, and to WRITE its dead-letter topic",
    Reported.GROUP_AUTHORIZATION_FAILED: "Allow this user to READ the group, or choose another consumer.group_id",
    Reported.CLUSTER_AUTHORIZATION_FAILED: "Allow this user IDEMPOTENT_WRITE on the cluster",
    Reported.INCONSISTENT_GROUP_PROTOCOL: (
        "The group has members that know no cooperative-sticky assignment: stop them, choose another "
        "consumer.group_id, or set partition.assignment.strategy in kafka.properties"
    ),
    Reported.INVALID_GROUP_ID: "Choose another consumer.group_id",
    Reported.GROUP_MAX_SIZE_REACHED: "The group is full: raise group.max.size of the brokers or stop other members",
    Reported.FENCED_INSTANCE_ID: "Another member has the same group.instance.id: give each its own",
    Reported.MSG_SIZE_TOO_LARGE: "Raise max.message.bytes of the topic",
    Reported.RECORD_LIST_TOO_LARGE: "Raise max.message.bytes of the topic",
    Reported.INVALID_RECORD: "The topic refuses the record, as a compacted one refuses records without a key",
    Reported.TOPIC_EXCEPTION: "Choose a legal name",
    Reported.POLICY_VIOLATION: "The cluster's policy forbids it: create the topic by other means",
}


def is_final(error: Reported) -> bool:
    """Waiting does not cure it."""
    return bool(error.fatal()) or error.code() in _HINTS


def translate(error: Reported, doing: str) -> KafkaError:
    """The error of ours that says what went wrong while ``doing`` (as in "reading topic x")."""
    message = f"Kafka says while {doing}: {error.str()} ({error.name()})"
    if is_final(error):
        return KafkaError(message, hint=_HINTS.get(error.code()))
    return KafkaUnavailable(message)
