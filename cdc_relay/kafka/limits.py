"""How large a batch of records a topic takes: ``max.message.bytes``, asked of the cluster."""

from __future__ import annotations

import logging
from concurrent.futures import TimeoutError as NoAnswer
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType  # type: ignore[attr-defined]

_SETTING = "max.message.bytes"

#: What the cluster may take to answer before the question counts as unanswerable.
_ANSWER_S = 5.0


class TopicLimits:
    """Asks with a client of its own, made at the first question. One thread at a time uses it."""

    def __init__(self, properties: dict[str, Any], *, logger: logging.Logger) -> None:
        self._properties = properties
        self._logger = logger
        self._client: AdminClient | None = None
        self._is_slow = False

    def ask(self, topic: str, wait_s: float) -> int | None:
        """The largest batch that ``topic`` takes, in bytes.

        None where that is not to be had within ``wait_s``: this account may not ask (it needs DescribeConfigs on the
        topic), or the brokers do not answer such questions. Then nobody waits for a next answer either.
        """
        if self._is_slow:
            return None
        if self._client is None:
            self._client = AdminClient(self._properties, logger=self._logger)
        asked = self._client.describe_configs([ConfigResource(ResourceType.TOPIC, topic)], request_timeout=_ANSWER_S)
        try:
            (answer,) = asked.values()
            return int(answer.result(wait_s)[_SETTING].value)
        except NoAnswer:
            self._is_slow = True
        except (KafkaException, KeyError, TypeError, ValueError) as error:
            self._logger.info(f"{_SETTING} of topic {topic!r} is not told: {error}")
        return None
