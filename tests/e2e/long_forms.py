"""How large and how long the scenarios are: short in ``make test``, and as long as they get with FAULTS_LONG=1."""

from __future__ import annotations

import os

LONG = os.environ.get("FAULTS_LONG", "") not in ("", "0")

ROWS_IN_ONE_TRANSACTION = 1_000_000 if LONG else 40_000
#: Bytes of each of their payloads: some hundreds of megabytes together in either form.
PAYLOAD_BYTES = 400 if LONG else 5_000
MEGABYTES_ELSEWHERE = 3_000 if LONG else 300
OUTAGE_S = 600 if LONG else 8
PATIENCE_S = 1_200.0 if LONG else 120.0
