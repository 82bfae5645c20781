"""
Draw docs/charts/*.svg, and write the table of docs/results.md, from the numbers in docs/data/.

    make charts
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from models.evaluation.bootstrap import Interval
from models.report.charts import IntervalRow, Series, bar_chart, interval_chart

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results.md"
TABLE = re.compile(r"(?<=<!-- table: written by `make charts` -->\n)(?:\|.*\n)+")
MEASURED = {
    "a4any": "amazon4, any overlap",
    "fk": "Food-Kitchen",
    "a4all": "amazon4, all four domains",
    "a5": "amazon5-sample5000*",
}
# Measured later; of each the longest schedule that was run. A star: no default was chosen there.
LATER = {"toys": "toys*", "video_games": "video games*", "books": "books, kept aside*", "movies": "movies, kept aside*"}
SERVED, TARGET_ONLY, EXPERT = "served", "target-only", "target expert alone"
# In a picture of its own nobody says what colour text has; this one reads on white and on black.
TEXT_COLOUR = "#777777"

Row = dict[str, str]


def main() -> None:
    """Write every chart and the table."""
    for name, draw in CHARTS.items():
        (DOCS / "charts" / f"{name}.svg").write_text(draw() + "\n", encoding="utf-8")
    text = RESULTS.read_text(encoding="utf-8")
    assert TABLE.search(text), "docs/results.md has lost the place of its table"
    RESULTS.write_text(TABLE.sub(lambda _: gain_table(), text), encoding="utf-8")


def gain_chart() -> str:
    """What each use of a bundle gives SASRec over target rows alone, on eight tables or targets."""
    rows = [
        IntervalRow(label, interval, use) for label, _, _, gains in gains_by_table() for use, interval in gains.items()
    ]
    return _alone(
        interval_chart(
            "Gain in NDCG@10 over SASRec trained on target rows alone",
            rows,
            x_label="gain among items that are new to the user (hollow: the interval contains 0)",
            percent=True,
            subtitle="95 % intervals over users, unknown for the target expert; *: no default was chosen there",
        )
    )


def gain_table() -> str:
    """The same numbers as Markdown."""
    lines = [
        f"| data | test users | SASRec of target rows | {TARGET_ONLY} | {SERVED} | {EXPERT} |",
        "|---|---|---|---|---|---|",
    ]
    for label, users, original, gains in gains_by_table():
        cells = (_stated(gains[use]) for use in (TARGET_ONLY, SERVED, EXPERT))
        lines.append(f"| {label} | {users} | {original:.4f} | {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def gains_by_table() -> Iterator[tuple[str, str, float, dict[str, Interval]]]:
    """Label, test users, NDCG@10 of SASRec of target rows, and gain of each use; ranking ``unseen``."""
    for data, label in MEASURED.items():
        scores = [row for row in read("scores") if _is(row, data=data, rule="anticipate", ranking="unseen")]
        expert = {row["target"]: float(row["mixed"]) for row in scores if row["recommender"] == "target expert"}
        sasrec = [row for row in scores if row["recommender"] == "sasrec"]
        originals = {row["target"]: float(row["original"]) for row in sasrec}
        alone = sum(expert[target] / original - 1 for target, original in originals.items()) / len(originals)
        found = {
            row["line"]: _interval(row["relative_percent"], row["low"], row["high"])
            for row in read("means")
            if _is(row, data=data, rule="anticipate", ranking="unseen", recommender="sasrec", baseline="original")
        }
        gains = {TARGET_ONLY: found["regenerated"], SERVED: found["served"], EXPERT: Interval(alone, alone, alone)}
        users = f"{sum(int(row['users']) for row in sasrec):,}, {len(sasrec)} targets"
        yield label, users, sum(originals.values()) / len(originals), gains
    longest = {row["target"]: row for row in sorted(read("untuned-tables"), key=lambda row: int(row["epochs"]))}
    for target, label in LATER.items():
        row = longest[target]
        alone = float(row["target_expert"]) / float(row["original"]) - 1
        lines = {TARGET_ONLY: "regenerated", SERVED: "served"}
        gains = {
            use: _interval(row[f"{line}_percent"], row[f"{line}_low"], row[f"{line}_high"])
            for use, line in lines.items()
        }
        users = f"{int(row['test_users']):,}" if row["test_users"] else "not noted"
        yield label, users, float(row["original"]), {**gains, EXPERT: Interval(alone, alone, alone)}


def speed_chart() -> str:
    """How many times as fast as the released code, by the number of items."""
    decoding = {row["items"]: row for row in read("decoding") if row["domains"] == "4"}
    training = {row["items"]: row for row in read("training")}
    sizes = list(decoding)
    series = [
        Series("regenerating, rule paper", [float(decoding[size]["released_over_ours"]) for size in sizes]),
        Series("training", _column(training, sizes, "ours_over_released")),
        Series("training in bfloat16", _column(training, sizes, "bfloat16_over_released")),
    ]
    return _alone(
        bar_chart(
            "Times as fast as the released code, one thread",
            [f"{int(size):,} items" for size in sizes],
            series,
            y_label="times",
        )
    )


def _column(rows: dict[str, Row], sizes: Iterable[str], name: str) -> list[float]:
    return [float(rows[size][name] or "nan") if size in rows else float("nan") for size in sizes]


def read(name: str) -> list[Row]:
    """The rows of a file of docs/data/."""
    with (DOCS / "data" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _is(row: Row, **values: str) -> bool:
    return all(row[name] == value for name, value in values.items())


def _interval(mean: str, low: str, high: str) -> Interval:
    return Interval(*(float(percent) / 100 for percent in (mean, low, high)))


def _stated(gain: Interval) -> str:
    mean, low, high = (_percent(value) for value in (gain.mean, gain.low, gain.high))
    return f"{mean} %" if gain.low == gain.high else f"{mean} % [{low}, {high}]"


def _percent(value: float) -> str:
    """Halves away from zero, as -0.5 was rounded once before it came into the file."""
    whole = math.copysign(math.floor(abs(round(100 * value, 4)) + 0.5), value)
    return f"{whole:+.0f}" if whole else "0"


def _alone(drawing: str) -> str:
    return drawing.replace("currentColor", TEXT_COLOUR)


CHARTS: dict[str, Callable[[], str]] = {"gain": gain_chart, "speed": speed_chart}

if __name__ == "__main__":
    main()
