"""The effects, one module a ``biz_type``. To add one: write a ``Handler`` and list it here."""

from __future__ import annotations

from consumer.handlers import chat_history
from consumer.registry import HandlerRegistry


def default_registry() -> HandlerRegistry:
    """Every handler that ships."""
    return HandlerRegistry([chat_history.handler()])
