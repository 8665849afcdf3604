"""Asking a program that runs on this machine what its admin server says."""

from __future__ import annotations

from http.client import HTTPConnection, HTTPException

from prometheus_client.parser import text_string_to_metric_families

from cdc_relay.admin.server import local

#: Whoever asks is not kept waiting by a program that hangs.
_ANSWER_S = 1.0


def labels(host: str, port: int, metric: str) -> dict[str, str]:
    """The labels of the first sample of ``metric``; empty when nothing answers there, or has no such metric."""
    connection = HTTPConnection(local(host), port, timeout=_ANSWER_S)  # which knows of no proxies
    try:
        connection.request("GET", "/metrics")
        told = connection.getresponse().read().decode()
        for family in text_string_to_metric_families(told):
            for sample in family.samples:
                if sample.name == metric:
                    return dict(sample.labels)
    except (OSError, HTTPException, ValueError):  # ValueError: somebody else's program answers there
        pass
    finally:
        connection.close()
    return {}
