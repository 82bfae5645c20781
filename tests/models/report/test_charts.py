"""What a chart shows where, read from the points of its SVG."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from models.report.charts import Series, line_chart


def points_of(svg: str) -> list[tuple[float, float]]:
    """(x, y) of the only line of the chart, in pixels from its upper left corner."""
    [path] = re.findall(r'<path d="M([^"]*)" stroke="[^"]*" stroke-width="1.6"', svg)
    return [(float(x), float(y)) for x, y in (point.split(",") for point in path.split("L"))]


def drawn(*values: float, log_y: bool) -> list[tuple[float, float]]:
    return points_of(line_chart("title", [Series("one", values)], x_label="x", y_label="y", log_y=log_y))


def test_on_a_log_axis_every_halving_is_one_step_down_to_one():
    """8, 4, 2, 1, and what is below 1 is drawn at 1."""
    heights = [y for _, y in drawn(8, 4, 2, 1, 0.25, log_y=True)]
    steps = [lower - upper for upper, lower in pairwise(heights)]

    assert steps[0] > 0
    assert steps == pytest.approx([steps[0]] * 3 + [0])


def test_on_a_plain_axis_equal_differences_are_equal_steps_above_zero():
    heights = [y for _, y in drawn(8, 6, 4, 2, 0, log_y=False)]
    steps = [lower - upper for upper, lower in pairwise(heights)]

    assert steps[0] > 0
    assert steps == pytest.approx([steps[0]] * 4)


def test_a_line_runs_from_the_left_edge_in_even_steps():
    places = [x for x, _ in drawn(1, 1, 1, 1, log_y=False)]
    steps = [right - left for left, right in pairwise(places)]

    assert places[0] == 0
    assert steps == pytest.approx([steps[0]] * 3)
