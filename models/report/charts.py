"""
Charts as self-contained SVG text, for reports that open without a network and for the documentation.

Drawn by Vega-Lite: Altair describes a chart, vl-convert turns it into SVG inside this process, with no browser and no
network (docs/decisions/0018-charts-by-vega-lite.md). The same data give the same bytes. Text and axes take the page's
colour, so a dark page stays readable. Both libraries load with the first chart: they take a second and more, and a
service starts without one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.evaluation.bootstrap import Interval

if TYPE_CHECKING:
    import altair as alt

WIDTH, HEIGHT = 480, 240
ROW_HEIGHT = 15
# Okabe-Ito: told apart by most colour-blind readers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#888888"
PAGE_COLOUR = "currentColor"
FONT = "system-ui, sans-serif"
LONGEST_LABEL = 320


@dataclass(frozen=True)
class Series:
    """A named line, or one bar per category; *errors* are half-lengths of error bars."""

    name: str
    values: Sequence[float]
    errors: Sequence[float] | None = None


@dataclass(frozen=True)
class IntervalRow:
    """One interval of a forest plot: its line of the plot, and the series that gives its colour."""

    line: str
    interval: Interval
    series: str = ""


def line_chart(title: str, series: Sequence[Series], *, x_label: str, y_label: str, log_y: bool = False) -> str:
    """Lines over x = 0, 1, 2, ...; on a log axis (base 2) values below 1 are drawn at 1."""
    import altair as alt

    floor = 1.0 if log_y else 0.0
    rows: list[dict[str, Any]] = [
        {"series": line.name, "x": x, "y": max(float(value), floor)}
        for line in series
        for x, value in enumerate(line.values)
    ]
    longest = max((len(line.values) for line in series), default=1)
    highest = max((row["y"] for row in rows), default=floor)
    domain: list[float] = [floor, max(highest, floor + 1.0) if log_y else highest or 1.0]
    scale = alt.Scale(type="log", base=2, domain=domain) if log_y else alt.Scale(domain=domain, nice=True)
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(strokeWidth=1.6, aria=False)
        .encode(
            x=alt.X("x:Q", title=x_label, scale=alt.Scale(domain=[0, max(1, longest - 1)])),
            y=alt.Y("y:Q", title=y_label, scale=scale),
            color=_colour([line.name for line in series]),
        )
    )
    return _svg(chart.properties(width=WIDTH, height=HEIGHT), title)


def bar_chart(title: str, categories: Sequence[str], series: Sequence[Series], *, y_label: str) -> str:
    """Grouped bars with optional error bars; values are not negative, and NaN has no bar."""
    import altair as alt

    names = [one.name for one in series]
    rows = list(_bars(categories, series))
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("category:N", title=None, sort=list(categories), axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("series:N", sort=names),
    )
    bars = base.mark_bar().encode(y=alt.Y("value:Q", title=y_label), color=_colour(names))
    errors = base.mark_rule(color=PAGE_COLOUR).encode(y=alt.Y("low:Q", title=y_label), y2="high:Q")
    # A layer without marks would be a picture without a name to those who listen
    layers = (bars, errors) if any("low" in row for row in rows) else (bars,)
    return _svg(alt.layer(*layers).properties(width=WIDTH, height=HEIGHT), title)


def _bars(categories: Sequence[str], series: Sequence[Series]) -> Iterator[dict[str, Any]]:
    for one in series:
        for index, (category, value) in enumerate(zip(categories, one.values, strict=True)):
            error = one.errors[index] if one.errors else 0.0
            if not math.isnan(value):
                bounds = {"low": max(0.0, value - error), "high": value + error} if error else {}
                yield {"series": one.name, "category": category, "value": value, **bounds}


def interval_chart(
    title: str, rows: Sequence[IntervalRow], *, x_label: str, percent: bool = False, subtitle: str = ""
) -> str:
    """
    A forest plot: horizontal intervals around their means, with a line at 0.

    An interval that contains 0 is drawn hollow, as it shows no difference; without series it is grey as well. *percent*
    says that values are fractions, to be labelled in percent.
    """
    import altair as alt

    lines, names = list(dict.fromkeys(row.line for row in rows)), list(dict.fromkeys(row.series for row in rows))
    data = [
        {
            "line": row.line,
            "series": row.series,
            "low": row.interval.low,
            "mean": row.interval.mean,
            "high": row.interval.high,
            "shown": row.interval.excludes_zero,
        }
        for row in rows
    ]
    base = alt.Chart(alt.InlineData(values=data)).encode(
        y=alt.Y("line:N", title=None, sort=lines, axis=alt.Axis(labelLimit=LONGEST_LABEL, ticks=False, domain=False)),
        yOffset=alt.YOffset("series:N", sort=names),
        color=alt.condition("datum.shown", alt.value(COLOURS[0]), alt.value(GREY))
        if names in ([], [""])
        else _colour(names),
    )
    axis = alt.Axis(format="+.0%") if percent else alt.Axis(format="~g")
    spans = base.mark_rule(strokeWidth=2.5).encode(x=alt.X("low:Q", title=x_label, axis=axis), x2="high:Q")
    means = base.mark_point(size=46, strokeWidth=2, opacity=1).encode(
        x=alt.X("mean:Q", title=x_label),
        fill=alt.condition("!datum.shown", alt.value("white"), _colour(names), legend=None)
        if names not in ([], [""])
        else alt.condition("datum.shown", alt.value(COLOURS[0]), alt.value("white")),
    )
    zero = (
        alt.Chart(alt.InlineData(values=[{"zero": 0}]))
        .mark_rule(strokeDash=[4, 3], color=PAGE_COLOUR)
        .encode(x="zero:Q")
    )
    height = alt.Step(ROW_HEIGHT * max(1, len(names)) + 6, **{"for": "position"})
    return _svg(alt.layer(zero, spans, means).properties(width=WIDTH, height=height), title, subtitle)


def scatter(
    title: str,
    first: Sequence[tuple[float, float]],
    second: Sequence[tuple[float, float]],
    links: Sequence[tuple[int, int]],
    *,
    names: tuple[str, str],
) -> str:
    """Two clouds, faint; points that a link joins are solid, with a thin line between them."""
    import altair as alt

    linked = ({a for a, _ in links}, {b for _, b in links})
    points = [
        {"series": name, "x": x, "y": y, "linked": index in solid}
        for name, cloud, solid in zip(names, (first, second), linked, strict=True)
        for index, (x, y) in enumerate(cloud)
    ]
    joins = [{"x": first[a][0], "y": first[a][1], "x_end": second[b][0], "y_end": second[b][1]} for a, b in links]
    x, y = (alt.Scale(zero=False, nice=False, padding=8) for _ in range(2))
    lines = (
        alt.Chart(alt.InlineData(values=joins))
        .mark_rule(color=PAGE_COLOUR, opacity=0.12, aria=False)
        .encode(x=alt.X("x:Q", scale=x, axis=None), x2="x_end:Q", y=alt.Y("y:Q", scale=y, axis=None), y2="y_end:Q")
    )
    marks = (
        alt.Chart(alt.InlineData(values=points))
        .mark_circle(aria=False)
        .encode(
            x=alt.X("x:Q", scale=x, axis=None),
            y=alt.Y("y:Q", scale=y, axis=None),
            color=_colour(names),
            size=alt.condition("datum.linked", alt.value(32), alt.value(14)),
            opacity=alt.condition("datum.linked", alt.value(0.95), alt.value(0.35)),
        )
    )
    return _svg(alt.layer(lines, marks).properties(width=WIDTH, height=WIDTH * 3 // 4), title)


def _colour(names: Sequence[str]) -> alt.Color:
    import altair as alt

    colours = [COLOURS[index % len(COLOURS)] for index in range(len(names))]
    legend = alt.Legend(title=None, orient="top", labelLimit=LONGEST_LABEL, columns=6) if any(names) else None
    return alt.Color("series:N", sort=list(names), scale=alt.Scale(domain=list(names), range=colours), legend=legend)


def _svg(chart: alt.Chart | alt.LayerChart | alt.FacetChart, title: str, subtitle: str = "") -> str:
    """The chart's SVG; its title is the picture's name for those who listen to the page."""
    import altair as alt
    import vl_convert

    text: dict[str, Any] = {"labelColor": PAGE_COLOUR, "titleColor": PAGE_COLOUR, "labelFont": FONT, "titleFont": FONT}
    heading = alt.TitleParams(
        title, subtitle=[subtitle] if subtitle else [], font=FONT, subtitleFont=FONT, color=PAGE_COLOUR,
        subtitleColor=PAGE_COLOUR, fontSize=13,
    )  # fmt: skip
    drawn = (
        chart.properties(title=heading, description=title, background="transparent")
        .configure_axis(**text, titleFontWeight="normal", gridColor=GREY, gridOpacity=0.25, domainColor=GREY)
        .configure_legend(**text)
        .configure_view(stroke=None)
    )
    return vl_convert.vegalite_to_svg(drawn.to_dict(validate=False))
