"""From cells to the three forms of the report."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from models.data.dataset import Sequences
from models.errors import BundleMismatchError, ConfigurationError
from models.evaluation.arms import Queries
from models.evaluation.bootstrap import Interval
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.cells import Cell
from models.evaluation.configuration import load_config, tuned_config
from models.evaluation.ranking import Ranks
from models.evaluation.study import Study, run_study
from models.evaluation.summary import GROUPS, MAIN, summarise
from models.ranking_metrics import METRICS, per_row_metrics
from models.recommenders.cl4srec import CL4SRecConfig
from models.recommenders.gcegnn import GCEGNNConfig
from models.recommenders.gru4rec import GRU4RecConfig
from models.recommenders.recommender import SharedConfig
from models.recommenders.registry import CONFIGURATIONS
from models.report import charts
from models.report.pages import markdown, write_report
from models.training.loop import TrainingConfig

SMALL = EvaluationConfig(
    training=TrainingConfig(learning_rate=3e-3, batch_size=16, max_epochs=1, patience=10),
    shared=SharedConfig(width=16, inner_width=16),
)


def cell(arm: str, seed: int, ranks: list[int], recommender: str = "sasrec") -> Cell:
    both = Ranks(tuple(ranks), tuple(ranks))
    return Cell("key", recommender, arm, seed, both, None, 0.1, 3, 13, 5, 100, 2.0, "cpu", torch.__version__)


def queries(num_target_items: list[int]) -> Queries:
    size = len(num_target_items)
    return Queries(
        np.arange(size) * 10,
        Sequences.from_lists([[1]] * size),
        np.ones(size, dtype=np.int32),
        Sequences.from_lists([[]] * size),
        np.asarray(num_target_items),
    )


def ndcg(rank: int) -> float:
    return float(per_row_metrics(torch.tensor([rank]))[0, 1])


def test_means_groups_and_differences_by_arithmetic():
    """Two seeds, five users, one without target items: it counts in its group only."""
    cells = [
        cell("original", 1, [1, 2, 3, 30, 1]),
        cell("original", 2, [1, 1, 3, 30, 1]),
        cell("regenerated", 1, [2, 1, 1, 30, 1]),
        cell("regenerated", 2, [1, 1, 1, 12, 1]),
    ]
    results = summarise(cells, queries([1, 2, 3, 6, 0]), ranking="all", leak_hits=(), seed=0)
    main = {score.arm: score for score in results.scores if score.group == MAIN.name}
    seeds = [np.mean([ndcg(r) for r in one.ranks.all[:4]]) for one in cells]

    assert main["original"].users == 4
    assert main["original"].means["NDCG@10"] == pytest.approx(np.mean(seeds[:2]))
    assert main["original"].deviations["NDCG@10"] == pytest.approx(np.std(seeds[:2], ddof=1))
    sizes = {score.group: score.users for score in results.scores if score.arm == "original"}
    assert sizes == {MAIN.name: 4, "0": 1, "1-2": 2, "3-5": 1, "6 or more": 1}
    (compared,) = [c for c in results.comparisons if c.metric == "NDCG@10"]
    assert (compared.arm, compared.baseline, compared.users) == ("regenerated", "original", 4)
    assert compared.interval.mean == pytest.approx(np.mean(seeds[2:]) - np.mean(seeds[:2]))
    assert compared.per_seed == pytest.approx([seeds[2] - seeds[0], seeds[3] - seeds[1]])
    assert compared.interval.low <= compared.interval.mean <= compared.interval.high
    assert results.broken_checks == ()


def test_a_trained_recommender_is_compared_with_the_counted_ones_on_the_original_rows():
    """Every seed against the one counted cell; counted recommenders are not compared with each other."""
    floor = dataclasses.replace(cell("original", 1, [4, 4]), recommender="markov")
    cells = [cell("original", 1, [1, 4]), cell("original", 2, [4, 4]), floor]
    compared = summarise(cells, queries([1, 1]), ranking="all", leak_hits=(), seed=0).comparisons
    by_metric = {c.metric: c for c in compared}

    assert {(c.recommender, c.baseline_recommender, c.arm, c.baseline) for c in compared} == {
        ("sasrec", "markov", "original", "original")
    }
    assert by_metric["MRR@10"].per_seed == pytest.approx(((1 - 1 / 4) / 2, 0))
    assert by_metric["MRR@10"].interval.mean == pytest.approx((1 - 1 / 4) / 4)


def test_the_target_expert_is_compared_with_every_trained_recommender_of_the_original_rows():
    """The one expert against each seed; not with a count, and the base decoder with nobody."""
    cells = [
        cell("original", 1, [4, 2]),
        cell("original", 2, [2, 2]),
        cell("original", 1, [9, 9], "markov"),
        cell("mixed", 1, [1, 2], "target expert"),
        cell("mixed", 1, [1, 1], "base decoder"),
    ]
    compared = summarise(cells, queries([1, 1]), ranking="all", leak_hits=(), seed=0).comparisons
    decoders = {(c.recommender, c.baseline_recommender): c for c in compared if c.metric == "MRR@10"}
    del decoders["sasrec", "markov"]

    assert decoders.keys() == {("target expert", "sasrec")}
    assert decoders["target expert", "sasrec"].per_seed == pytest.approx(((1 - 1 / 4) / 2, (1 - 1 / 2) / 2))


def test_differences_pair_the_same_seeds_whatever_the_order_of_the_cells():
    """Seed 1 is compared with seed 1; a seed that only one arm has is left out."""
    cells = [
        cell("original", 2, [5, 5]),
        cell("original", 1, [1, 1]),
        cell("regenerated", 1, [1, 1]),
        cell("regenerated", 3, [9, 9]),
    ]
    results = summarise(cells, queries([1, 1]), ranking="all", leak_hits=(), seed=0)

    assert [c.per_seed for c in results.comparisons] == [(0.0,)] * len(METRICS)


def test_comparisons_are_repeated_without_the_users_that_the_audit_hit():
    """The user hit (position 10 in the dataset) made all the gain."""
    cells = [cell("original", 1, [5, 50, 5]), cell("regenerated", 1, [5, 1, 5])]
    results = summarise(cells, queries([1, 1, 1]), ranking="all", leak_hits=(10,), seed=0)
    by_reading = {c.without_leak_hits: c for c in results.comparisons if c.metric == "NDCG@10"}

    assert by_reading[False].interval.mean == pytest.approx(1 / 3)
    assert by_reading[True].interval.mean == 0
    assert by_reading[True].users == 2


def test_regenerated_histories_are_compared_with_every_other_way_to_serve_users_whom_the_target_hardly_knows():
    """Two of three users have at most two target items; a line without seeds stands for every seed."""
    cells = [
        cell("original", 1, [20, 5, 5]),
        cell("original", 2, [20, 5, 5]),
        cell("served", 1, [1, 5, 20]),
        cell("served", 2, [5, 20, 20]),
        cell("mixed", 1, [9, 9, 9], "base decoder"),
    ]
    results = summarise(cells, queries([0, 2, 3]), ranking="all", leak_hits=(), seed=0)
    hits = {c.baseline_recommender: c for c in results.comparisons if c.group == "0-2" and c.metric == "HR@10"}

    assert hits["sasrec"].per_seed == (0.5, 0.0)
    assert hits["base decoder"].per_seed == (0.0, -0.5)
    assert {c.users for c in hits.values()} == {2}


def test_regenerated_histories_need_the_bundle_that_made_the_composite(report, dataset):
    """Without it, or without arm regenerated, nothing is trained."""
    study, _ = report
    with pytest.raises(ConfigurationError, match="need bundle"):
        run_study(dataset, study, command="no bundle")
    with pytest.raises(ConfigurationError, match="arm regenerated"):
        run_study(dataset, replace(study, arms=("mixed",)), command="no arm")


def test_a_bundle_that_did_not_make_the_composite_is_refused(report, dataset, matching_bundle):
    """Its decoders and item vectors would stand in the report as if they had."""
    study, _ = report
    retrained = replace(matching_bundle, version="another")
    with pytest.raises(ConfigurationError, match="not by another"):
        run_study(dataset, replace(study, histories=("target",)), command="another bundle", bundle=retrained)


def test_a_bundle_of_another_dataset_ranks_nothing(report, dataset, bundle):
    """It may have been trained on what is held out here, and its decoders are lines of the report."""
    study, _ = report
    with pytest.raises(BundleMismatchError, match="not trained on dataset"):
        run_study(dataset, replace(study, histories=("target",)), command="another bundle", bundle=bundle)


def test_groups_share_out_every_history_length():
    """Each number of target items belongs to exactly one group; the main table takes all but none."""
    counts = np.arange(50)

    assert (sum(group.members(counts).astype(int) for group in GROUPS) == 1).all()
    assert MAIN.members(counts).tolist() == [False] + [True] * 49


@pytest.fixture(scope="module")
def report(dataset, composite_folder, matching_bundle, tmp_path_factory):
    study = Study(
        target="food",
        recommenders=("sasrec", "popularity"),
        arms=("duplicated", "regenerated", "mixed"),
        seeds=(1, 2),
        composite=composite_folder,
        histories=("target", "regenerated"),
        ranking="all",
        config=SMALL,
        cells=tmp_path_factory.mktemp("cells"),
        device=torch.device("cpu"),
    )
    return study, run_study(
        dataset,
        study,
        command="taesar evaluate <X> | & more",
        bundle=matching_bundle,
    )


def test_a_study_runs_the_whole_grid_then_reads_it_back(report, dataset, matching_bundle):
    """4 arms x (2 seeds of SASRec + 1 of popularity); the second time nothing is computed and all numbers agree."""
    study, first = report
    seen = []
    second = run_study(dataset, study, command="again", bundle=matching_bundle, on_cell=seen.append)

    assert (first.provenance.cells_computed, first.provenance.cells_reused) == (12, 0)
    assert (second.provenance.cells_computed, second.provenance.cells_reused) == (0, 12)
    assert all(one.reused for one in seen)
    assert second.results == first.results
    assert second.audits == first.audits


def test_the_other_ranking_is_read_from_the_same_cells(report, dataset, matching_bundle):
    """Nobody ranks worse among fewer items, and somebody of these users ranks better."""
    study, first = report
    again = run_study(dataset, replace(study, ranking="unseen"), command="again", bundle=matching_bundle)
    before, after = (
        {(s.recommender, s.arm): s.means["MRR@20"] for s in one.results.scores if s.group == MAIN.name}
        for one in (first, again)
    )

    assert again.provenance.cells_computed == 0
    assert all(after[line] >= before[line] for line in before)
    assert sum(after.values()) > sum(before.values())
    assert "had not had before" in markdown(again)
    assert "had not had before" not in markdown(first)


def test_the_json_form_holds_everything(report, tmp_path):
    """Command, fingerprint, configuration, cells, intervals, audit, statistics, mapping."""
    _, content = report
    write_report(content, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())

    assert written == json.loads(json.dumps(asdict(content)))
    assert written["provenance"]["command"] == "taesar evaluate <X> | & more"
    assert {audit["split"] for audit in written["audits"]} == {"validation", "test"}
    in_main = [c for c in written["results"]["comparisons"] if c["group"] == MAIN.name]
    assert {c["baseline"] for c in in_main} == {"original", "duplicated", "with expert", "mixed"}
    assert {c["arm"] for c in in_main} >= {"regenerated", "served", "with expert", "served with expert"}
    # What regenerated histories add is asked of them alone, and so is whether others make more of mixed histories.
    assert {c["arm"] for c in in_main if c["baseline"] == "with expert"} == {"served", "served with expert"}
    against = {(c["arm"], c["baseline_recommender"]) for c in in_main if c["baseline"] == "mixed"}
    others = ("sasrec", "base decoder", "target expert")
    assert against == {(line, name) for line in ("served", "served with expert") for name in others}
    assert written["projections"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json", "report.md"]


def test_the_html_form_is_one_well_formed_page_that_loads_nothing(report, tmp_path):
    """Every plot parses as XML; no script, link or address outside the page; text is escaped."""
    _, content = report
    write_report(content, tmp_path)
    page = (tmp_path / "report.html").read_text()

    drawn = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawn) >= 8
    for one in drawn:
        ElementTree.fromstring(one)
        assert "NaN" not in one
    assert "taesar evaluate &lt;X&gt;" in page
    assert not re.search(r"<script|<link|src=|href=", page)
    for table in (
        "Ranking of the test items",
        "Differences",
        "Leak audit",
        "Training rows before and after",
        "Mapping",
    ):
        assert table in page


def test_the_markdown_form_has_whole_tables(report, tmp_path):
    """Every row of a table has as many cells as its header."""
    _, content = report
    write_report(content, tmp_path)
    text = (tmp_path / "report.md").read_text()
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]

    assert len(tables) == 7
    for rows in tables:
        assert len({row.count("|") for row in rows}) == 1


def test_what_has_one_seed_is_shown_without_a_deviation(report, tmp_path):
    """Popularity is counted once; a deviation of 0 would say that it never moves."""
    _, content = report
    write_report(content, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    counted = next(line for line in lines if line.startswith("| popularity | original |"))
    trained = next(line for line in lines if line.startswith("| sasrec | original |"))

    assert ("±" in trained, "±" in counted) == (True, False)


def test_inconsistent_metrics_are_shouted(report, tmp_path):
    """The page says so where a reader begins."""
    _, content = report
    broken = dataclasses.replace(content, results=dataclasses.replace(content.results, broken_checks=("sasrec: x",)))
    write_report(broken, tmp_path)

    for name in ("report.md", "report.html"):
        assert "INCONSISTENT METRICS: sasrec: x" in (tmp_path / name).read_text()


SPAN = Interval(1, 0.5, 2)
DRAWINGS = {
    "lines": lambda: charts.line_chart(
        "t", [charts.Series("a", [0, 1, 1000]), charts.Series("b", [])], x_label="x", y_label="y"
    ),
    "logarithms": lambda: charts.line_chart(
        "t", [charts.Series("a", [1024, 32, 0])], x_label="x", y_label="y", log_y=True
    ),
    "no lines": lambda: charts.line_chart("t", [], x_label="x", y_label="y"),
    "bars": lambda: charts.bar_chart("t & u", ["<a>", "b"], [charts.Series("s", [0.0, 0.0], [0.0, 0.0])], y_label="y"),
    "no bars": lambda: charts.bar_chart("t", ["a"], [charts.Series("s", [math.nan])], y_label="y"),
    "intervals": lambda: charts.interval_chart(
        "t", [charts.IntervalRow("a", Interval(0.0, 0.0, 0.0)), charts.IntervalRow("b", SPAN)], x_label="x"
    ),
    "series": lambda: charts.interval_chart(
        "t", [charts.IntervalRow("a", SPAN, "s"), charts.IntervalRow("a", SPAN, "u")], x_label="x", percent=True
    ),
    "no intervals": lambda: charts.interval_chart("t", [], x_label="x"),
    "points": lambda: charts.scatter("t", [(0.0, 0.0)], [(0.0, 0.0)], [(0, 0)], names=("a", "b")),
}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_charts_of_any_data_are_valid_xml_without_a_number_that_is_none(draw):
    """Empty, constant and zero data included."""
    drawing = draw()

    ElementTree.fromstring(drawing)
    assert "NaN" not in drawing
    assert "Infinity" not in drawing


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS.keys())
def test_the_same_data_give_the_same_bytes(draw):
    assert draw() == draw()


def marks(drawing: str, kind: str) -> list[str]:
    """What Vega calls the data of each mark of one *kind*, read to those who listen to the page."""
    group = rf'<g class="mark-{kind} role-mark[^"]*"[^>]*>(.*?)</g>'
    return [
        label for found in re.findall(group, drawing, re.DOTALL) for label in re.findall(r'aria-label="(.*?)"', found)
    ]


def test_every_value_has_its_bar_and_none_has_no_bar():
    series = [charts.Series("original", [0.25, math.nan]), charts.Series("served", [0.5, 0.75])]
    drawn = marks(charts.bar_chart("t", ["sasrec", "gru4rec"], series, y_label="NDCG@10"), "rect")

    assert len(drawn) == 3
    assert all(any(f"NDCG@10: {value}" in one for one in drawn) for value in (0.25, 0.5, 0.75))


def test_an_interval_that_contains_zero_is_hollow():
    rows = [charts.IntervalRow("gain", SPAN), charts.IntervalRow("nothing", Interval(0.5, -1, 2))]
    drawing = charts.interval_chart("t", rows, x_label="difference")
    points = re.findall(r'aria-label="difference: [^"]*line: (\w+)[^>]*?fill="(#?\w+)"', drawing)

    assert dict(points) == {"gain": charts.COLOURS[0], "nothing": "white"}


def test_lines_of_a_logarithmic_chart_stand_at_equal_steps_for_equal_ratios():
    drawing = charts.line_chart("t", [charts.Series("a", [16, 4, 1])], x_label="x", y_label="y", log_y=True)
    path = re.search(r'role-mark[^>]*>.*? d="M([^"]+)"', drawing, re.DOTALL)
    assert path
    heights = [float(point.split(",")[1]) for point in path[1].split("L")]

    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1])
    assert heights[0] < heights[1]


def test_a_page_without_t_sne_says_how_to_get_it(report, tmp_path):
    """And one with it does not."""
    _, content = report
    pca_alone = [plane for plane in content.projections if plane.method == "pca"]
    write_report(dataclasses.replace(content, projections=tuple(pca_alone)), tmp_path / "without")
    write_report(content, tmp_path / "with")

    assert "taesar[plots]" in (tmp_path / "without" / "report.html").read_text()
    assert "taesar[plots]" not in (tmp_path / "with" / "report.html").read_text()


def test_the_documented_configuration_is_the_released_code_s():
    """examples/evaluation.toml names every key with the released value, and nothing else."""
    path = Path(__file__).parents[3] / "examples" / "evaluation.toml"
    tables = tomllib.loads(path.read_text())
    defaults, shared = load_config(path), asdict(SharedConfig())
    own = {name: asdict(config()).keys() - shared.keys() for name, config in CONFIGURATIONS.items()}

    assert defaults.training == TrainingConfig()
    assert all(defaults.training_of(name) == TrainingConfig() for name in CONFIGURATIONS)
    assert defaults.shared == SharedConfig()
    assert all(defaults.config_of(name) == config() for name, config in CONFIGURATIONS.items())
    assert tables["training"].keys() == asdict(TrainingConfig()).keys() - {"seed"}
    assert tables["recommender"].keys() - own.keys() == shared.keys()
    assert {name: tables["recommender"][name].keys() for name, keys in own.items() if keys} == {
        name: keys for name, keys in own.items() if keys
    }


def test_a_recommender_takes_what_it_has_of_the_shared_hyper_parameters_and_its_own_table_before_them(tmp_path):
    """A key comes from the recommender's own table, else from [recommender], else it is the default."""
    (tmp_path / "some.toml").write_text(
        "[recommender]\nwidth = 64\ndropout = 0\nnum_heads = 4\n"
        "[recommender.gru4rec]\nhidden_width = 8\ndropout = 0.1\n"
    )
    config = load_config(tmp_path / "some.toml")

    assert config.shared == SharedConfig(width=64, dropout=0, num_heads=4)
    assert config.config_of("gru4rec") == GRU4RecConfig(width=64, dropout=0.1, hidden_width=8)
    assert config.config_of("gcegnn") == GCEGNNConfig(width=64, dropout_local=0.5)
    assert config.config_of("cl4srec") == CL4SRecConfig(width=64, dropout=0, num_heads=4, temperature=12.0)


def test_the_tuned_file_says_what_holds_without_a_file():
    """Every trained recommender's schedule finds its own length, and every key that the file names is the default."""
    config = load_config(Path(__file__).parents[3] / "examples" / "tuned.toml")

    assert config == tuned_config()
    schedules = {name: config.training_of(name) for name in CONFIGURATIONS}
    assert {name for name, one in schedules.items() if one.schedule != "plateau"} == {"gru4rec"}
    assert schedules["gru4rec"].max_epochs > 10 * schedules["gru4rec"].patience
    assert (config.config_of("cl4srec").temperature, config.config_of("gcegnn").dropout_local) == (12.0, 0.5)


def test_what_a_file_says_of_all_recommenders_goes_before_the_default_of_one(tmp_path):
    """GRU4Rec's own default rate and epochs give way; its own batch size stays."""
    (tmp_path / "c.toml").write_text("[training]\nmax_epochs = 2\nlearning_rate = 1e-2\n")
    config = load_config(tmp_path / "c.toml")

    own = config.training_of("gru4rec")
    assert (own.max_epochs, own.learning_rate, own.batch_size) == (2, 1e-2, 128)


def test_a_table_of_a_recommender_overrides_the_schedule_of_that_one_alone(tmp_path):
    """A key comes from the recommender's own table, else from [training], else it is the default."""
    (tmp_path / "c.toml").write_text(
        "[training.gru4rec]\nlearning_rate = 1e-3\npatience = 4\n[training]\npatience = 7\nbatch_size = 32\n"
    )
    config = load_config(tmp_path / "c.toml")

    own, others = config.training_of("gru4rec"), config.training_of("sasrec")
    assert (own.learning_rate, own.patience, own.batch_size) == (1e-3, 4, 32)
    assert (others.learning_rate, others.patience, others.batch_size) == (
        tuned_config().training.learning_rate,
        7,
        32,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width = [", "not a readable TOML"),
        ("[model]\nwidth = 3", "unknown table 'model'"),
        ("[recommender]\nwidht = 3", "unknown key recommender.widht"),
        ("[training]\nseed = 3", "unknown key training.seed"),
        ('[recommender]\nwidth = "wide"', "recommender.width = 'wide' is not of type int"),
        ("[training]\npatience = true", "training.patience = True is not of type int"),
        ('[training]\nprecision = "half"', "training.precision = 'half' is none of 'auto'"),
        ("[recommender]\nnum_heads = 3", "recommender: width = 128 is not a multiple of num_heads = 3"),
        ("[recommender.gcegnn]\nwindow = 0", "recommender.gcegnn: window = 0 is less than 1"),
        ("[recommender.cl4srec]\ncrop = 1.5", "recommender.cl4srec: crop = 1.5 is not in [0, 1]"),
        ("[recommender.cl4srec]\ntemperature = 0", "recommender.cl4srec: temperature = 0 is not above 0"),
        ("[recommender.gcegnn]\ndropout = 0.1", "unknown key recommender.gcegnn.dropout; known: width"),
        ("[recommender.gru4rec]\nhidden_width = 1.5", "recommender.gru4rec.hidden_width = 1.5 is not of type int"),
        ("[recommender.markov]\nwidth = 3", "unknown recommender recommender.markov"),
        ("[recommender]\nhidden_width = 3", "unknown key recommender.hidden_width"),
        ("[multi_domain]\nweight_memory = 0.5", "unknown table 'multi_domain'"),
        ("[recommender]\ndropout = 1", "dropout = 1 is not in [0, 1)"),
        ("[training]\nbatch_size = 0", "training: batch_size 0 is less than 1"),
        ("[training.gru4rec]\nlearning_rate = -1", "training.gru4rec: learning_rate -1 is not above 0"),
        ("training = 3", "training is not a table"),
        ("[training.gru5rec]\npatience = 3", "unknown recommender training.gru5rec"),
        ("[training.popularity]\npatience = 3", "unknown recommender training.popularity"),
        ("[training]\ngru4rec = 3", "unknown key training.gru4rec"),
        ("[training.gru4rec]\nwidth = 3", "unknown key training.gru4rec.width"),
        ('[training.gru4rec]\npatience = "long"', "training.gru4rec.patience = 'long' is not of type int"),
        ("[schedules.gru4rec]\npatience = 3", "unknown table 'schedules'"),
    ],
)
def test_a_configuration_that_asks_for_what_cannot_be_is_refused_by_name(text, message, tmp_path):
    """The message names the table, key or value."""
    (tmp_path / "bad.toml").write_text(text)

    with pytest.raises(ConfigurationError, match=re.escape(message)):
        load_config(tmp_path / "bad.toml")


def test_rows_that_were_best_at_their_last_epoch_are_shouted_and_no_others(report, tmp_path):
    """By recommender, arm and seed; a row with an epoch to spare is not named."""
    _, content = report
    runs = [
        replace(run, best_epochs=(1, 1), epochs=(2, 2)) for run in content.results.runs if run.recommender == "sasrec"
    ]
    for last, expected in (((2, 2), False), ((2, 1), True)):
        cut = [*runs[1:], replace(runs[0], epochs=last)]
        write_report(replace(content, results=replace(content.results, runs=tuple(cut))), tmp_path)
        for name in ("report.md", "report.html"):
            text = (tmp_path / name).read_text()
            assert ("NOT CONVERGED" in text) == expected
            assert (f"{runs[0].recommender} on {runs[0].arm} (seed 2)" in text) == expected
