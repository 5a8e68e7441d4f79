"""Draws the figures of `gateway bench` as an SVG for a page. No I/O.

Two groups of bars: the CPU time of an event, beside aiortc alone, and the delay of the deltas. Each group has its own scale.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

Bar = tuple[str, float]

GROUPS: Final[Sequence[tuple[str, str, Mapping[str, str]]]] = (
    (
        "CPU time of an event",
        "µs",
        {
            "gateway_us_per_event": "gateway",
            "bare_tuned_us_per_event": "aiortc alone, same tuning",
            "bare_stock_us_per_event": "aiortc alone, stock",
        },
    ),
    (
        "Delay of a delta, sender to client",
        "ms",
        {"delta_delay_ms_p50": "p50", "delta_delay_ms_p99": "p99", "delta_delay_ms_p999": "p99.9"},
    ),
)
"""Title, unit, and the figures of each group with their labels."""

_WIDTH: Final = 640
_LABEL_WIDTH: Final = 210
_BAR_WIDTH: Final = 330
_ROW_HEIGHT: Final = 26
_HEAD_HEIGHT: Final = 34


def svg(title: str, figures: Mapping[str, object]) -> str:
    """Return the drawing. Groups without a figure are left out."""
    rows: list[str] = [_text(16, 26, title, weight="bold")]
    height = _HEAD_HEIGHT
    for name, unit, labels in GROUPS:
        bars = [
            (label, float(value))
            for key, label in labels.items()
            if isinstance(value := figures.get(key), int | float)
        ]
        if bars:
            rows.append(_text(16, height + 22, f"{name} ({unit})"))
            height += _HEAD_HEIGHT
            rows += _bars(bars, height)
            height += _ROW_HEIGHT * len(bars)
    # Colours that can be read on a white and on a black page.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height + 16}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14" fill="#808080">\n'
        f"<title>{escape(title)}</title>\n" + "\n".join(rows) + "\n</svg>\n"
    )


def _bars(bars: Sequence[Bar], top: int) -> list[str]:
    longest = max(value for _, value in bars) or 1.0
    drawn = []
    for index, (label, value) in enumerate(bars):
        y = top + index * _ROW_HEIGHT
        width = max(1.0, value / longest * _BAR_WIDTH)
        drawn += [
            _text(32, y + 16, label),
            f'<rect x="{_LABEL_WIDTH}" y="{y + 4}" width="{width:.1f}" height="16" rx="2" fill="#4c8bf5"/>',
            _text(_LABEL_WIDTH + width + 8, y + 16, f"{value:,.1f}" if value >= 1 else f"{value:.2f}"),
        ]
    return drawn


def _text(x: float, y: int, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y}" font-weight="{weight}">{escape(text)}</text>'
