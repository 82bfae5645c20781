"""The paper's tables and figures from a small dataset, end to end; a second run trains nothing."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from models.bundle import load_bundle
from models.data.dataset import Dataset
from models.evaluation.arms import build_arm
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.search import MOST_TRIALS, search
from models.evaluation.trained import Trainings
from models.ranking_metrics import METRICS
from models.recommenders.gru4rec import GRU4RecConfig
from models.recommenders.recommender import SharedConfig
from models.reproduction.documents import write_figure, write_table_1, write_table_2, write_table_3
from models.reproduction.paper_rows import OF_MIXED_ROWS, SERVED, SINGLE_DOMAIN, TABLE_2, TABLE_3
from models.reproduction.runs import Reproduction, evaluate_variant, forget_runs
from models.reproduction.side_by_side import MEAN
from models.training.loop import TrainingConfig
from models.training.pipeline import NetworkConfig, PipelineConfig

SHORT = TrainingConfig(learning_rate=3e-3, batch_size=32, max_epochs=1)


class Epochs:
    """Counts what trains."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.stepped: set[str] = set()

    def on_step(self, report):
        self.stepped.add(report.stage)

    def on_epoch(self, report):
        self.stages.append(report.stage)


def read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def reproduction(dataset: Dataset, out: Path, progress: Epochs) -> Reproduction:
    return Reproduction(
        dataset=dataset,
        out=out,
        command="taesar reproduce",
        pipeline=PipelineConfig(NetworkConfig(width=16, inner_width=16), SHORT, SHORT),
        config=EvaluationConfig(
            training=SHORT,
            shared=SharedConfig(width=16, inner_width=16),
            recommenders={"gru4rec": GRU4RecConfig(width=16, hidden_width=16)},
        ),
        seeds=(1,),
        ranking="all",
        recommenders=tuple(SINGLE_DOMAIN),
        device=torch.device("cpu"),
        progress=progress,
    )


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Reproduction:
    return reproduction(dataset, tmp_path_factory.mktemp("reproduction"), Epochs())


@pytest.fixture(scope="module")
def table_2(run, dataset) -> list[dict[str, str]]:
    write_table_2(run, dataset.vocabulary.domains[:2], "anticipate")
    return read_csv(run.out / "table-2.csv")


def test_table_2_has_every_row_of_the_paper_and_ours_for_every_target_metric_and_their_mean(table_2, dataset):
    """With the paper's gain beside ours where the paper has the row."""
    targets = [*dataset.vocabulary.domains[:2], MEAN]
    of = {(value["row"], value["target"], value["metric"]): value for value in table_2}

    assert set(of) == {(row.name, target, metric) for row in TABLE_2 for target in targets for metric in METRICS}
    for row in TABLE_2:
        values = [of[row.name, target, "NDCG@10"] for target in targets]
        assert float(values[2]["mean"]) == pytest.approx(
            (float(values[0]["mean"]) + float(values[1]["mean"])) / 2, rel=1e-4
        )
        assert bool(values[0]["paper"]) == (row.paper is not None)
        assert bool(values[0]["paper_gain"]) == (row.paper is not None and row.base is not None)
    assert int(of["SASRec", MEAN, "HR@10"]["users"]) == sum(
        int(of["SASRec", target, "HR@10"]["users"]) for target in targets[:2]
    )


def test_gains_are_over_the_row_that_the_table_names(table_2):
    """The mean gain is the ratio of the two rows' means."""
    of = {(value["row"], value["target"], value["metric"]): value for value in table_2}
    compared = [value for value in table_2 if value["gain"] and value["target"] != MEAN]

    assert compared
    for value in compared:
        base = float(of[value["base"], value["target"], value["metric"]]["mean"])
        assert float(value["gain"]) == pytest.approx(float(value["mean"]) / base - 1, abs=1e-4)
        assert float(value["gain_low"]) <= float(value["gain"]) <= float(value["gain_high"])


def test_served_recommenders_are_compared_with_everyone_who_reads_the_mixed_history(table_2, run):
    """Each of the four, alone and with the target expert, with that expert and the four models of mixed rows."""
    pairs = {(row["served"], row["rival"]) for row in read_csv(run.out / "rivals.csv")}
    rivals = {*OF_MIXED_ROWS.values(), "target expert alone", "itself with target expert, not regenerated"}

    assert pairs == {
        (name.format(printed), rival)
        for printed in SINGLE_DOMAIN.values()
        for name in SERVED.values()
        for rival in rivals
    }


def test_what_the_expert_adds_to_a_served_recommender_is_over_the_same_sum_without_regeneration(table_2, run):
    """The ratio of the two rows of table 2."""
    of = {(value["row"], value["target"], value["metric"]): float(value["mean"]) for value in table_2}
    ours, without = "SASRec + Taesar, served, with target expert", "SASRec with target expert, not regenerated"
    [gain] = [
        float(row["gain"])
        for row in read_csv(run.out / "rivals.csv")
        if (row["served"], row["rival"][:6]) == ("SASRec with target expert", "itself")
        and (row["target"], row["metric"]) == ("food", "NDCG@10")
    ]

    assert gain == pytest.approx(of[ours, "food", "NDCG@10"] / of[without, "food", "NDCG@10"] - 1, abs=1e-4)


def test_markdown_and_chart_stand_beside_the_csv(table_2, run):
    """The mean first; one line a row; a picture that opens by itself."""
    text = (run.out / "table-2.md").read_text()

    assert text.index(f"## {MEAN}") < text.index("## food")
    assert all(text.count(f"| {row.name} |") == 3 for row in TABLE_2)
    assert "NOT CONVERGED" in text  # one epoch is the last
    assert (run.out / "table-2.svg").read_text().startswith("<svg")


def test_table_3_takes_what_table_2_trained_and_has_one_base_for_all_ways(table_2, run, dataset):
    """Seven composites; experts adapted, from scratch and of single-domain rows, over the very same base."""
    target = dataset.vocabulary.domains[0]
    trained = len(run.progress.stages)
    run.progress.stepped.clear()
    forget_runs(run)  # as the command for table 2 alone does at its end
    write_table_3(run, (target,))
    rows = read_csv(run.out / "table-3.csv")
    bases = [load_bundle(run.out / "bundles" / way).base for way in ("adapted", "from-scratch", "single-domain")]

    assert [row["row"] for row in rows if row["metric"] == "HR@10"] == [
        "SASRec",
        *(variant.name for variant in TABLE_3),
    ]
    for other in bases[1:]:
        assert torch.equal(other.item_embeddings_VD, bases[0].item_embeddings_VD)
    assert "base" not in run.progress.stepped
    assert "sasrec" in run.progress.stepped
    # Of table 2's cells SASRec of the original rows and of our rule are there; two ablations may make equal rows.
    assert 0 < run.progress.stages[trained:].count("sasrec") <= 2 * (len(TABLE_3) - 1)


def test_a_second_run_trains_nothing_and_writes_the_same(table_2, run, dataset):
    """Nothing but the wall time changes."""
    before = (run.out / "table-2.csv").read_bytes()
    again = dataclasses.replace(run, progress=Epochs())
    write_table_2(again, dataset.vocabulary.domains[:2], "anticipate")

    assert again.progress.stages == []
    assert (run.out / "table-2.csv").read_bytes() == before


def test_the_other_ranking_trains_nothing_and_lies_beside(table_2, run, dataset):
    """Same cells, other numbers, and the first table as it was."""
    unseen = dataclasses.replace(run, ranking="unseen", progress=Epochs())
    write_table_2(unseen, dataset.vocabulary.domains[:2], "anticipate")
    others = read_csv(run.out / "table-2-unseen.csv")

    assert unseen.progress.stages == []
    assert read_csv(run.out / "table-2.csv") == table_2
    assert [row["row"] for row in others] == [row["row"] for row in table_2]
    assert others != table_2


def test_chosen_recommenders_leave_the_rows_of_the_others_out(table_2, run, dataset, tmp_path):
    """The models of mixed rows stay, and the numbers are those of the whole table."""
    out = tmp_path / "again"
    shutil.copytree(run.out, out)
    few = dataclasses.replace(run, out=out, recommenders=("sasrec",), progress=Epochs())
    write_table_2(few, dataset.vocabulary.domains[:2], "anticipate")
    others = {name for code, name in SINGLE_DOMAIN.items() if code != "sasrec"}
    kept = [value for value in table_2 if not any(name in value["row"] for name in others)]

    assert few.progress.stages == []
    assert read_csv(out / "table-2.csv") == kept
    assert {row["served"] for row in read_csv(out / "rivals.csv")} == {"SASRec", "SASRec with target expert"}


def test_another_configuration_is_trained_anew(table_2, run, dataset, tmp_path):
    """A bundle that lies there is not taken for one of another schedule."""
    pipeline = dataclasses.replace(run.pipeline, base=dataclasses.replace(SHORT, seed=7))
    again = dataclasses.replace(run, progress=Epochs(), pipeline=pipeline, out=tmp_path)
    shutil.copytree(run.out / "bundles" / "adapted", tmp_path / "bundles" / "adapted")
    write_figure(again, dataset.vocabulary.domains[:1], "anticipate", 5)

    assert "base" in again.progress.stages


@pytest.mark.parametrize("figure", [4, 5])
def test_figures_come_with_their_numbers_and_those_of_a_control(figure, table_2, run, dataset):
    """Random pairs beside mapped ones; doubled rows beside the composite."""
    target = dataset.vocabulary.domains[0]
    write_figure(run, (target,), "anticipate", figure)
    numbers = read_csv(run.out / f"figure-{figure}.csv")
    charts = list((run.out / f"figure-{figure}").glob(f"{target}-*.svg"))

    assert all(number["target"] == target for number in numbers)
    if figure == 4:
        assert {number["source"] for number in numbers} <= set(dataset.vocabulary.domains) - {target}
        assert all(-1 <= float(number["mean_cosine_of_random_pairs"]) <= 1 for number in numbers)
        assert len(charts) == 2 * len(numbers)
    else:
        assert [number["rows_of"] for number in numbers] == ["original", "regenerated rows", "composite", "duplicated"]
        assert len(charts) == 3


def test_table_1_states_users_items_and_sparsity_of_every_domain(run, dataset):
    """Counted here from the sequences, held-out items included."""
    (path,) = write_table_1(run)
    text = path.read_text()
    sequences = [dataset.complete[user] for user in range(len(dataset.user_ids))]
    for domain in dataset.vocabulary.domains:
        tokens = dataset.vocabulary.token_range(domain)
        own = [sum(int(token) in range(tokens.first, tokens.last + 1) for token in row) for row in sequences]
        users, interactions = sum(1 for count in own if count), sum(own)
        sparsity = 100 * (1 - interactions / (users * len(tokens)))
        counts = f"{users:,} | {len(tokens):,} | {interactions:,} | {interactions / users:.2f}"
        line = f"| {domain} | {counts} | {sparsity:.2f} % |"
        assert line in text


def test_reports_are_kept_as_evaluate_writes_them_and_runs_can_be_forgotten(table_2, run, dataset):
    """For whoever wants more than the table."""
    (report,) = (run.out / "reports" / "adapted-anticipate").glob(f"{dataset.vocabulary.domains[0]}-sasrec-*.json")
    forget_runs(run)

    assert json.loads(report.read_text())["provenance"]["command"] == "taesar reproduce"
    assert not (run.out / "bundles" / "adapted.run").exists()


def test_with_a_full_budget_validation_chooses_every_recommenders_setting_once(table_2, run, dataset):
    """Every arm takes what the search found; asked again, the trials are read back."""
    target, variant = dataset.vocabulary.domains[0], TABLE_3[-1]
    bundle = load_bundle(run.out / "bundles" / "adapted")
    searching = dataclasses.replace(run, tuned=True, progress=Epochs())
    report = evaluate_variant(searching, bundle, target, variant)
    again = dataclasses.replace(searching, progress=Epochs())
    evaluate_variant(again, bundle, target, variant)

    trainings = Trainings(build_arm(dataset, target, "original", None), run.config, run.out / "cells", run.device)
    best = search("sasrec", trainings, seed=1).best
    assert 3 <= len(search("sasrec", trainings, seed=1).trials) <= MOST_TRIALS
    chosen = report.provenance.configuration
    assert chosen["training"]["sasrec"]["learning_rate"] == best.point.learning_rate
    assert chosen["recommender"]["sasrec"]["dropout"] == best.point.dropout
    (original,) = [one for one in report.results.runs if one.arm == "original"]
    assert original.validation_ndcg_at_10 == (best.ndcg_at_10,)
    assert searching.progress.stages
    assert again.progress.stages == []
