"""How a program begins and ends: an interpreter that is tuned for starting, last words for people, an exit code.

Nothing but the standard library is imported before the command is at work, so that Ctrl-C is answered from the start.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdc_relay.errors import RelayError

#: As shells have it for a program ended by SIGINT.
_INTERRUPTED = 130

#: More than all imports make. They leave no garbage, and to look for some as often as Python does takes a tenth of a
#: start.
_OBJECTS_BEFORE_COLLECTING = 200_000


def run_program(command: Callable[[], object]) -> None:
    """Run ``command``. When it raises, say why on stderr in one line and a hint, and exit with the error's code.

    The traceback is shown when ``--debug`` is among the arguments of the program.
    """
    gc.set_threshold(_OBJECTS_BEFORE_COLLECTING, 20, 100)
    # We have no plugins of pydantic; to look for some it reads the metadata of every package that is installed.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    try:
        from cdc_relay.errors import RelayError

        try:
            command()
        except RelayError as error:
            sys.exit(_tell(error))
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception as error:  # noqa: BLE001  # the last line of defence: one line for people, the code for machines
        sys.exit(_tell_unexpected(error))


def _tell(error: RelayError) -> int:
    from cdc_relay.masking import mask_text

    _tell_traceback()
    print(mask_text(f"error: {error.message}"), file=sys.stderr)
    if error.hint:
        print(mask_text(f"hint: {error.hint}"), file=sys.stderr)
    return error.exit_code


def _tell_unexpected(error: Exception) -> int:
    from cdc_relay.masking import mask_text

    _tell_traceback()
    first = (str(error).splitlines() or [""])[0]
    print(mask_text(f"error: unexpected {type(error).__name__}: {first}"), file=sys.stderr)
    if not _debug():
        print("hint: run with --debug for the traceback, and report it", file=sys.stderr)
    return 1


def _tell_traceback() -> None:
    if _debug():
        import traceback

        from cdc_relay.masking import mask_text

        print(mask_text(traceback.format_exc()), file=sys.stderr)


def _debug() -> bool:
    # Not by way of the parser: it may be the parser that has failed.
    return "--debug" in sys.argv[1:]
