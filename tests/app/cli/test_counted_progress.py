"""What a counted work tells while it runs, with a clock that is set by hand."""

from __future__ import annotations

import io

from rich.console import Console

from app.cli.counted_progress import CountedProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(steps: list[tuple[float, int]], total: int, *, first: int = 0) -> list[str]:
    """What a log holds after calls at some seconds with so many done."""
    output, clock = io.StringIO(), Clock()
    with CountedProgress(Console(file=output, width=60), clock=clock) as progress:
        progress("making", first, total)
        for now, done in steps:
            clock.now = now
            progress("making", done, total)
    return output.getvalue().splitlines()


def test_a_log_hears_at_once_how_much_there_is_to_do() -> None:
    assert lines_of([], 1_000_000) == ["making: 1,000,000"]


def test_the_first_seconds_are_timed_and_what_all_will_take_is_said() -> None:
    assert lines_of([(2.0, 100), (5.0, 250)], 10_000)[1:] == ["making: the first 250 took 0:05, so about 3:15 more"]


def test_a_log_hears_at_least_every_ten_seconds_how_far_it_is() -> None:
    steps = [(float(second), 50 * second) for second in range(1, 61)]
    lines = lines_of(steps, 10_000)

    assert lines[2] == "making: 600 of 10,000, 50 a second, 3:08 left"
    assert len(lines) == 2 + 56 // 8


def test_what_an_earlier_run_did_is_no_part_of_the_pace() -> None:
    assert lines_of([(5.0, 9_100)], 10_000, first=9_000)[1:] == ["making: the first 100 took 0:05, so about 0:45 more"]


def test_of_a_short_work_nothing_is_foretold() -> None:
    assert lines_of([(5.0, 5_000), (6.0, 6_000), (9.9, 10_000)], 10_000) == ["making: 10,000"]


def test_a_second_stage_is_timed_by_itself() -> None:
    output, clock = io.StringIO(), Clock()
    with CountedProgress(Console(file=output, width=60), clock=clock) as progress:
        for stage in ("making", "writing"):
            progress(stage, 0, 100)
            clock.now += 5
            progress(stage, 10, 100)

    assert output.getvalue().splitlines() == [
        "making: 100",
        "making: the first 10 took 0:05, so about 0:45 more",
        "writing: 100",
        "writing: the first 10 took 0:05, so about 0:45 more",
    ]


def test_a_terminal_sees_a_bar_with_the_time_left() -> None:
    output, clock = io.StringIO(), Clock()
    with CountedProgress(Console(file=output, width=120, force_terminal=True), clock=clock) as progress:
        progress("making", 0, 100)
        clock.now = 3.0
        progress("making", 30, 100)

    assert "30/100" in output.getvalue()
    assert "0:07 left" in output.getvalue()
