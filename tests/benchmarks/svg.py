"""Horizontal bars with whiskers from the lowest to the highest run, as SVG. Pure, and without a library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from cdc_relay.bench.figures import spread

_WIDTH = 860
_LABELS = 330
_VALUES = 190
_LINE = 22
_BAR = 13
_HEAD = 46
_PANEL_HEAD = 34
_FOOT = 30
_COLOURS = ("#2f6f9f", "#c9782b", "#4f8f4f", "#8a5fa8", "#8c8c8c")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#222}.title{font-size:17px;font-weight:600}.panel{font-weight:600}"
    ".small{font-size:11px;fill:#666}.whisker{stroke:#222;stroke-width:1.2}.axis{stroke:#bbb}"
)


@dataclass(frozen=True)
class Bar:
    """A median with its spread."""

    case: str
    variant: str
    """Bars of one variant have one colour."""
    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Panel:
    """Bars on one scale that begins at 0."""

    title: str
    bars: Sequence[Bar]


def chart(title: str, panels: Sequence[Panel], footer: str) -> str:
    """The panels one below the other."""
    colours = _colours(panels)
    parts = [_text(16, 28, title, "title")]
    y = _HEAD
    for panel in panels:
        parts.append(_text(16, y + 18, panel.title, "panel"))
        y += _PANEL_HEAD
        scale = _scale(panel)
        bottom = y + _LINE * len(panel.bars)
        parts.append(f'<line class="axis" x1="{_LABELS}" y1="{y - 4}" x2="{_LABELS}" y2="{bottom}"/>')
        for bar in panel.bars:
            parts += _drawn(bar, y, scale, colours[bar.variant])
            y += _LINE
    parts.append(_text(16, y + 20, footer, "small"))
    height = y + _FOOT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{_STYLE}</style>\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _colours(panels: Sequence[Panel]) -> dict[str, str]:
    variants = dict.fromkeys(bar.variant for panel in panels for bar in panel.bars)
    return {variant: _COLOURS[number % len(_COLOURS)] for number, variant in enumerate(variants)}


def _scale(panel: Panel) -> float:
    """Pixels of one unit."""
    return (_WIDTH - _LABELS - _VALUES) / (max((bar.highest for bar in panel.bars), default=0) or 1)


def _drawn(bar: Bar, y: float, scale: float, colour: str) -> list[str]:
    def x(value: float) -> str:
        return f"{_LABELS + max(0.0, value) * scale:.1f}"  # what is below 0 has no length

    middle = y + _LINE / 2 - 3
    whisker = []
    if bar.lowest != bar.highest:
        whisker = [
            f'<line class="whisker" x1="{x(bar.lowest)}" y1="{middle}" x2="{x(bar.highest)}" y2="{middle}"/>',
            *(
                f'<line class="whisker" x1="{x(end)}" y1="{middle - 4}" x2="{x(end)}" y2="{middle + 4}"/>'
                for end in (bar.lowest, bar.highest)
            ),
        ]
    length = max(0.0, bar.median) * scale
    return [
        _text(_LABELS - 8, middle + 4, f"{bar.case}: {bar.variant}", end=True),
        f'<rect x="{_LABELS}" y="{middle - _BAR / 2}" width="{length:.1f}" height="{_BAR}" fill="{colour}"/>',
        *whisker,
        _text(float(x(max(bar.median, bar.highest))) + 8, middle + 4, spread(bar.median, bar.lowest, bar.highest)),
    ]


def _text(x: float, y: float, words: str, kind: str = "", *, end: bool = False) -> str:
    attributes = (f' class="{kind}"' if kind else "") + (' text-anchor="end"' if end else "")
    return f'<text x="{x:g}" y="{y:g}"{attributes}>{escape(words)}</text>'
