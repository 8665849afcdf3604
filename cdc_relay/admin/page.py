"""The page that a person sees at ``/``: plain HTML in one file, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from html import escape

from cdc_relay.masking import mask

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 56rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .75rem .25rem 0 }
th { font-weight: 500; width: 40% } tr + tr { border-top: 1px solid #ddd } td { overflow-wrap: anywhere }
.yes { color: #176b2c } .no { color: #b00020; font-weight: 600 }
@media (prefers-color-scheme: dark) {
  body { background: #181818; color: #ddd } tr + tr { border-color: #333 } a { color: #8ab4f8 }
  .yes { color: #7bd88f } .no { color: #ff7b89 }
}
"""


def render(
    title: str,
    verdicts: Mapping[str, tuple[bool, Mapping[str, str]]],
    state: Mapping[str, object],
    links: Mapping[str, str],
    *,
    refresh_s: int = 5,
) -> str:
    """The page: ``verdicts`` by name (is it well, and its checks), the program's ``state``, ``links`` by address."""
    sections = [
        *(
            f'<h2>{escape(name)}: <span class="{"yes" if ok else "no"}">{"yes" if ok else "no"}</span></h2>'
            + _table(checks.items())
            for name, (ok, checks) in verdicts.items()
        ),
        "<h2>State</h2>" + _table(_flat(mask(state))),
        "<h2>More</h2>" + _list(links),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{refresh_s}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def _flat(state: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _table(rows: Iterable[tuple[str, object]]) -> str:
    body = "".join(f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>" for name, value in rows)
    return f"<table>{body}</table>" if body else "<p>nothing yet</p>"


def _text(value: object) -> str:
    match value:
        case None:
            return "–"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.3f}"
        case _:
            return str(value)


def _list(links: Mapping[str, str]) -> str:
    items = "".join(
        f'<li><a href="{escape(path)}">{escape(path)}</a> {escape(what)}</li>' for path, what in links.items()
    )
    return f"<ul>{items}</ul>"
