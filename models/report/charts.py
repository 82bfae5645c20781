"""
Plots as self-contained SVG text, for reports that open without a network or a plotting library.

Every function returns one ``<svg>`` element with a title. Text takes the page's colour, so a dark page stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from models.evaluation.bootstrap import Interval

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 48
# Okabe-Ito: told apart by most colour-blind readers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
TICKS = 5


@dataclass(frozen=True)
class Series:
    """A named line, or one bar per category; *errors* are half-lengths of error bars."""

    name: str
    values: Sequence[float]
    errors: Sequence[float] | None = None


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels: ``first`` to ``start``, ``last`` to ``end``; on a log scale by log2."""

    first: float
    last: float
    start: float
    end: float
    log: bool = False

    def pixel(self, value: float) -> float:
        """Pixel of *value*."""
        first, last, at = (math.log2(v) if self.log else v for v in (self.first, self.last, value))
        return self.start + (at - first) / ((last - first) or 1) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round values inside the axis; powers of two on a log scale."""
        if self.log:
            powers = range(math.ceil(math.log2(self.first)), math.floor(math.log2(self.last)) + 1)
            return [2.0**power for power in powers][:: max(1, len(powers) // (2 * TICKS))]
        rough = (self.last - self.first) / TICKS or 1.0
        magnitude = 10 ** math.floor(math.log10(rough))
        step = min((m * magnitude for m in (1, 2, 5, 10)), key=lambda candidate: abs(candidate - rough))
        first = math.ceil(self.first / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.last / step + 1e-9) + 1)]


def line_chart(title: str, series: Sequence[Series], *, x_label: str, y_label: str, log_y: bool = False) -> str:
    """Lines over x = 0, 1, 2, ...; on a log axis values below 1 are drawn at 1."""
    floor = 1.0 if log_y else 0.0
    longest = max((len(line.values) for line in series), default=1)
    highest = max((max(line.values, default=floor) for line in series), default=floor)
    x = Axis(0, max(1, longest - 1), LEFT, WIDTH - RIGHT)
    y = Axis(floor, max(highest, floor + 1e-9) * (1.0 if log_y else 1.05), HEIGHT - BOTTOM, TOP, log_y)
    drawn = [
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="'
        + " ".join(f"{x.pixel(i):.1f},{y.pixel(max(v, floor)):.1f}" for i, v in enumerate(line.values))
        + '"/>'
        for line, colour in zip(series, _colours(), strict=False)
    ]
    names = [line.name for line in series]
    return _svg(title, [*_frame(x, y, x_label, y_label), *drawn, *_legend(names)])


def bar_chart(title: str, categories: Sequence[str], series: Sequence[Series], *, y_label: str) -> str:
    """Grouped bars with optional error bars; values are not negative, and NaN has no bar."""
    tops = (value + (one.errors[i] if one.errors else 0.0) for one in series for i, value in enumerate(one.values))
    highest = max((top for top in tops if not math.isnan(top)), default=0.0)
    y = Axis(0.0, max(highest, 1e-9) * 1.15, HEIGHT - BOTTOM, TOP)
    slot = (WIDTH - RIGHT - LEFT) / max(1, len(categories))
    bar = 0.8 * slot / max(1, len(series))
    drawn = []
    for number, (one, colour) in enumerate(zip(series, _colours(), strict=False)):
        for category, value in enumerate(one.values):
            if math.isnan(value):
                continue
            left = LEFT + category * slot + 0.1 * slot + number * bar
            top = y.pixel(value)
            drawn.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{bar * 0.92:.1f}" height="{HEIGHT - BOTTOM - top:.1f}" '
                f'fill="{colour}"><title>{escape(one.name)}: {value:.4f}</title></rect>'
            )
            if one.errors and one.errors[category]:
                middle, error = left + bar * 0.46, one.errors[category]
                drawn.append(_line(middle, y.pixel(max(0.0, value - error)), middle, y.pixel(value + error)))
    labels = [_text(LEFT + (index + 0.5) * slot, HEIGHT - BOTTOM + 16, name) for index, name in enumerate(categories)]
    frame = _frame(None, y, "", y_label)
    return _svg(title, [*frame, *drawn, *labels, *_legend([one.name for one in series])])


def interval_chart(title: str, rows: Sequence[tuple[str, Interval]], *, x_label: str) -> str:
    """One horizontal interval per row around its mean, with a line at 0."""
    height = TOP + BOTTOM + 26 * max(1, len(rows))
    reach = max((max(abs(row.low), abs(row.high)) for _, row in rows), default=0.0) * 1.1 or 1.0
    left = 220
    x = Axis(-reach, reach, left, WIDTH - RIGHT)
    drawn = [_line(x.pixel(0), TOP, x.pixel(0), height - BOTTOM, dashed=True)]
    for index, (name, row) in enumerate(rows):
        middle = TOP + 26 * index + 13
        colour = COLOURS[0] if row.excludes_zero else "#888888"
        drawn += [
            f'<line x1="{x.pixel(row.low):.1f}" y1="{middle}" x2="{x.pixel(row.high):.1f}" y2="{middle}" '
            f'stroke="{colour}" stroke-width="3"/>',
            f'<circle cx="{x.pixel(row.mean):.1f}" cy="{middle}" r="4.5" fill="{colour}"/>',
            _text(left - 8, middle + 4, name, anchor="end"),
        ]
    ticks = [_text(x.pixel(tick), height - BOTTOM + 16, _number(tick)) for tick in x.ticks()]
    label = _text((left + WIDTH - RIGHT) / 2, height - 10, x_label)
    return _svg(title, [*drawn, *ticks, label], height=height)


def scatter(
    title: str,
    first: Sequence[tuple[float, float]],
    second: Sequence[tuple[float, float]],
    links: Sequence[tuple[int, int]],
    *,
    names: tuple[str, str],
) -> str:
    """Two clouds, faint; points that a link joins are solid, with a thin line between them."""
    xs, ys = zip(*(*first, *second), strict=True)
    size = 460
    x = Axis(min(xs), max(xs), 20, WIDTH - 20)
    y = Axis(min(ys), max(ys), size - 20, TOP + 14)
    linked = ({a for a, _ in links}, {b for _, b in links})
    drawn = [
        f'<line x1="{x.pixel(first[a][0]):.1f}" y1="{y.pixel(first[a][1]):.1f}" x2="{x.pixel(second[b][0]):.1f}" '
        f'y2="{y.pixel(second[b][1]):.1f}" stroke="currentColor" stroke-opacity="0.12"/>'
        for a, b in links
    ]
    for cloud, solid, colour in zip((first, second), linked, COLOURS, strict=False):
        drawn += [
            f'<circle cx="{x.pixel(px):.1f}" cy="{y.pixel(py):.1f}" r="{3 if index in solid else 2}" '
            f'fill="{colour}" fill-opacity="{0.95 if index in solid else 0.22}"/>'
            for index, (px, py) in enumerate(cloud)
        ]
    return _svg(title, [*drawn, *_legend(names)], height=size)


def _svg(title: str, parts: Iterable[str], *, height: int = HEIGHT) -> str:
    body = "\n".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" font-size="11">\n'
        f"{_text(WIDTH / 2, 14, title, weight='600')}\n{body}\n</svg>"
    )


def _frame(x: Axis | None, y: Axis, x_label: str, y_label: str) -> list[str]:
    parts = [_line(LEFT, TOP, LEFT, HEIGHT - BOTTOM), _line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM)]
    for tick in y.ticks():
        parts.append(_text(LEFT - 6, y.pixel(tick) + 4, _number(tick), anchor="end"))
    if x is not None:
        parts += [_text(x.pixel(tick), HEIGHT - BOTTOM + 16, _number(tick)) for tick in x.ticks()]
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_label))
    parts.append(
        f'<text x="14" y="{middle}" text-anchor="middle" fill="currentColor" '
        f'transform="rotate(-90 14 {middle})">{escape(y_label)}</text>'
    )
    return parts


def _legend(names: Sequence[str]) -> list[str]:
    parts, left = [], float(LEFT + 8)
    for name, colour in zip(names, _colours(), strict=False):
        parts.append(f'<rect x="{left:.0f}" y="{TOP - 10}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(left + 14, TOP - 1, name, anchor="start"))
        left += 30 + 6.2 * len(name)
    return parts


def _colours() -> Iterable[str]:
    while True:
        yield from COLOURS


def _line(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="currentColor"{dash}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="currentColor">'
        f"{escape(text)}</text>"
    )


def _number(value: float) -> str:
    return f"{value:.4g}"
