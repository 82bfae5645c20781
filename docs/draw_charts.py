"""
Draw docs/charts/*.svg, and write the tables of the results, from the numbers in docs/data/.

    make charts
"""

from __future__ import annotations

import csv
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from models.evaluation.bootstrap import Interval
from models.report.charts import IntervalRow, Series, bar_chart, interval_chart
from models.reproduction.side_by_side import MEAN, STATED

DOCS = Path(__file__).resolve().parent
# Name of a table -> the page that has it, and what writes it.
TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "table": ("results", lambda: gain_table()),
    "table of earlier bundles": ("results-caveats", lambda: earlier_table()),
    "table of rivals": ("paper-tables", lambda: rival_table()),
    "table 2": ("paper-tables", lambda: table_2()),
    "table 3": ("paper-tables", lambda: table_3()),
    "table of mapped items": ("paper-tables", lambda: mapped_table()),
}
MARKED = r"(?<=<!-- {}: written by `make charts` -->\n)(?:\|.*\n)+"
# What each use of a bundle is called, and its line and dial in gains.csv.
USES = {
    "SASRec + expert": ("with expert", "all"),
    "expert": ("target expert", "all"),
    "target-only": ("regenerated", "all"),
    "served": ("served", "all"),
    "default": ("served", "auto"),
    "default + expert": ("served with expert", "auto"),
}
# Targets of one dataset count once in a mean; more than two share a row of the table.
FAMILIES = {
    "films": ("action", "comedy", "drama", "family", "thriller"),
    "toys and video games": ("toys", "video games"),
    "Food-Kitchen": ("food", "kitchen"),
}
MOST_ROWS = 2
DRAWN = ("SASRec + expert", "target-only", "served", "default", "default + expert")
MEASURED = {
    "a4any": "amazon4, any overlap",
    "fk": "Food-Kitchen",
    "a4all": "amazon4, all four domains",
    "a5": "amazon5-sample5000*",
}
# Measured later; of each the longest schedule that was run. A star: no default was chosen there.
LATER = {"books": "books, kept aside*", "movies": "movies, kept aside*"}
# Its mapped items are tabled; the others' are in the file.
MAPPED_DATASET = "amazon4"
# The paper ranks so; the other ranking's rows are in the files.
STATED_RANKING = "all"
SERVED, TARGET_ONLY, EXPERT = "served", "target-only", "target expert alone"
# In a picture of its own nobody says what colour text has; this one reads on white and on black.
TEXT_COLOUR = "#777777"

Row = dict[str, str]


def main() -> None:
    """Write every chart and the tables."""
    for name, draw in CHARTS.items():
        (DOCS / "charts" / f"{name}.svg").write_text(draw() + "\n", encoding="utf-8")
    for name, (page, write) in TABLES.items():
        path = DOCS / f"{page}.md"
        text, place = path.read_text(encoding="utf-8"), re.compile(MARKED.format(name))
        assert place.search(text), f"docs/{page}.md has lost the place of its {name}"
        table = write()
        path.write_text(place.sub(lambda _, table=table: table, text), encoding="utf-8")


def gain_chart() -> str:
    """What uses of a bundle give over SASRec of target rows alone, on every target of today's bundles."""
    rows = [
        IntervalRow(label, gains[use], use) for label, _, _, gains in gains_by_target() for use in DRAWN if use in gains
    ]
    return _gains_drawn(
        "Gain in NDCG@10 over SASRec trained on target rows alone",
        rows,
        among="items that are new to the user",
        subtitle="95 % intervals over users and bundles; nothing was chosen on test items",
    )


def gain_table() -> str:
    """The same numbers and those of the other uses as Markdown, and their mean over families."""
    lines = _header("target", "users", "SASRec", *USES)
    found = {label: (users, original, gains) for label, users, original, gains in gains_by_target()}
    of_families = {
        name: {use: _mean([found[target][2][use] for target in family]) for use in USES}
        for name, family in FAMILIES.items()
    }
    for name, family in FAMILIES.items():
        if len(family) > MOST_ROWS:
            users = sum(found[target][0] for target in family)
            original = statistics.fmean(found[target][1] for target in family)
            label = f"{name}, {len(family)} targets"
            lines.append(f"| {label} | {users:,} | {original:.4f} | {_cells(of_families[name])} |")
            continue
        for target in family:
            users, original, gains = found[target]
            lines.append(f"| {target} | {users:,} | {original:.4f} | {_cells(gains)} |")
    means = {use: _mean([gains[use] for gains in of_families.values()]) for use in USES}
    lines.append(f"| **mean** | | | {_cells(means)} |")
    return "".join(f"{line}\n" for line in lines)


def _cells(gains: dict[str, Interval]) -> str:
    return " | ".join(_stated(gains[use]).replace(" %", "") if use in gains else "" for use in USES)


def _mean(gains: list[Interval]) -> Interval:
    """Of gains on different users, whose errors are taken as independent."""
    mean = statistics.fmean(gain.mean for gain in gains)
    low, high = (math.hypot(*(getattr(gain, end) - gain.mean for gain in gains)) for end in ("low", "high"))
    return Interval(mean, mean - low / len(gains), mean + high / len(gains))


def gains_by_target() -> Iterator[tuple[str, int, float, dict[str, Interval]]]:
    """
    Target, test users, NDCG@10 of SASRec of target rows, and the gain of each use.

    Of several bundles, each of which has seeds of its own: the mean of their gains. Its interval is as wide as theirs,
    since the users are the same, and wider by how far the bundles differ: half of it is the root of the sum of squares
    of the users' half and of 1.96 standard errors of the mean over bundles.
    """
    rows = read("gains")
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target]
        originals = [float(row["ndcg_at_10"]) for row in own if _is(row, line="original", dial="all")]
        gains = {}
        for use, (line, dial) in USES.items():
            found = [row for row in own if _is(row, line=line, dial=dial)]
            if found:
                gains[use] = _over_bundles(
                    [_interval(*(row[f"{end}_percent"] or "0" for end in ("mean", "low", "high"))) for row in found]
                )
        yield target.replace("_", " "), int(own[0]["users"]), sum(originals) / len(originals), gains


def _over_bundles(gains: list[Interval]) -> Interval:
    mean, low, high = (statistics.fmean(getattr(gain, end) for gain in gains) for end in ("mean", "low", "high"))
    deviation = statistics.stdev(gain.mean for gain in gains) if len(gains) > 1 else 0.0
    spread = 1.96 * deviation / math.sqrt(len(gains))
    return Interval(mean, mean - math.hypot(mean - low, spread), mean + math.hypot(high - mean, spread))


def earlier_table() -> str:
    """What bundles of earlier defaults gave."""
    lines = _header("data", "test users", "SASRec of target rows", TARGET_ONLY, SERVED, EXPERT)
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


def rival_chart() -> str:
    """What SASRec, served, gains over each other reader of mixed histories, mean over targets."""
    rows = [
        IntervalRow(
            f"{row['served']} ({row['dataset']})", _fractions(row, "gain", "gain_low", "gain_high"), row["rival"]
        )
        for row in _stated_rows("paper-rivals")
        if row["target"] == MEAN and row["served"].startswith("SASRec")
    ]
    return _gains_drawn(
        "Gain in NDCG@10 of SASRec, served, over models that read mixed histories themselves",
        rows,
        among="all items of the target",
        subtitle="mean over targets; 95 % intervals over users; one bundle",
    )


def rival_table() -> str:
    """The same as a table, of every recommender: a column a rival."""
    rows = [row for row in _stated_rows("paper-rivals") if row["target"] == MEAN]
    rivals = list(dict.fromkeys(row["rival"] for row in rows))
    lines = _header("dataset", "served", *(f"over {rival}" for rival in rivals))
    for dataset, served in dict.fromkeys((row["dataset"], row["served"]) for row in rows):
        own = {row["rival"]: row for row in rows if _is(row, dataset=dataset, served=served)}
        cells = (_gain_of(own[rival]) if rival in own else "" for rival in rivals)
        lines.append(f"| {dataset} | {served} | {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def table_2() -> str:
    """Each recommender's mean NDCG@10 over targets, and what every use of a bundle gains over it."""
    rows = [row for row in _stated_rows("paper-table-2") if row["target"] == MEAN]
    uses = (
        "{} + Taesar",
        "{}, duplicated rows",
        "{} + Taesar, served",
        "{} + Taesar, served, with target expert",
        "{} with target expert, not regenerated",
    )
    columns = ("+ Taesar", "the paper's gain", "duplicated", "served", "served + expert", "+ expert, not regenerated")
    lines = _header("dataset", "recommender", "NDCG@10", *columns)
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        by_name = {row["row"]: row for row in rows if row["dataset"] == dataset}
        for name in (row for row in by_name if uses[0].format(row) in by_name):
            taesar, *others = (_gain_of(by_name[use.format(name)]) for use in uses)
            printed = _percent(float(by_name[uses[0].format(name)]["paper_gain"]))
            cells = (dataset, name, f"{float(by_name[name]['mean']):.4f}", taesar, f"{printed} %", *others)
            lines.append(f"| {' | '.join(cells)} |")
        for name, row in by_name.items():
            if not row["base"] and uses[0].format(name) not in by_name:
                lines.append(f"| {dataset} | {name} | {float(row['mean']):.4f} |{' |' * len(columns)}")
    return "".join(f"{line}\n" for line in lines)


def table_3() -> str:
    """SASRec after each ablation, mean over targets, and the paper's gain of that row."""
    lines = _header("dataset", "rows of", "NDCG@10", "over SASRec", "the paper's")
    for row in _stated_rows("paper-table-3"):
        if row["target"] == MEAN:
            gain, printed = (_gain_of(row), row["paper_gain"]) if row["base"] else ("", "")
            told = f"{_percent(float(printed))} %" if printed else ""
            lines.append(f"| {row['dataset']} | {row['row']} | {float(row['mean']):.4f} | {gain} | {told} |")
    return "".join(f"{line}\n" for line in lines)


def mapped_table() -> str:
    """Figure 4 in numbers: cosines of mapped pairs beside those of random ones, and how far few targets take all."""
    counts = ("items replaced", "by", "most frequent one's share")
    lines = _header("from", "to", *counts, "cosine", "of random pairs", "median percentile")
    for row in read("paper-figure-4"):
        if _is(row, dataset=MAPPED_DATASET, ranking=STATED_RANKING):
            items = (f"{int(row[name]):,}" for name in ("items_replaced", "distinct_targets"))
            cosines = (f"{float(row[name]):.2f}" for name in ("mean_cosine", "mean_cosine_of_random_pairs"))
            share = f"{100 * float(row['top_target_share']):.1f} %"
            cells = (row["source"], row["target"], *items, share, *cosines, f"{float(row['median_percentile']):.0f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def _header(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def _stated_rows(name: str) -> list[Row]:
    """Rows in the paper's ranking and the metric that is stated, the mean over targets first."""
    rows = [row for row in read(name) if _is(row, ranking=STATED_RANKING, metric=STATED)]
    return sorted(rows, key=lambda row: (row["dataset"], row["target"] != MEAN))


def _gain_of(row: Row) -> str:
    return _stated(_fractions(row, "gain", "gain_low", "gain_high")).replace(" %", "") if row["gain"] else ""


def _fractions(row: Row, *names: str) -> Interval:
    return Interval(*(float(row[name]) for name in names))


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


def _gains_drawn(title: str, rows: list[IntervalRow], *, among: str, subtitle: str) -> str:
    x_label = f"gain among {among} (hollow: the interval contains 0)"
    return _alone(interval_chart(title, rows, x_label=x_label, percent=True, subtitle=subtitle))


def _alone(drawing: str) -> str:
    return drawing.replace("currentColor", TEXT_COLOUR)


CHARTS: dict[str, Callable[[], str]] = {"gain": gain_chart, "rivals": rival_chart, "speed": speed_chart}

if __name__ == "__main__":
    main()
