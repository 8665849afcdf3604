"""``python -m cdc_relay``."""

from cdc_relay.cli import main

main()
