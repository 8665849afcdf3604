"""``cdc-relay``: the console script. The commands are in ``commands/``."""

from __future__ import annotations

from cdc_relay.program import run_program


def main() -> None:
    """Run the command that ``sys.argv`` names and exit with its code."""
    run_program(_command)


def _command() -> None:
    from cdc_relay.commands import app

    app(prog_name="cdc-relay")


if __name__ == "__main__":
    main()
