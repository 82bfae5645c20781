"""Cells: equal budgets, honest ranking, reuse by content, and going on after a kill."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.data.dataset import Sequences
from models.errors import DatasetFormatError
from models.evaluation.advice import Advice, Advised
from models.evaluation.arms import ARM_NAMES, Arm, build_arm, build_queries, load_composite, with_served
from models.evaluation.budgets import EvaluationConfig, RowObjective, build_seeded
from models.evaluation.cells import Grid
from models.evaluation.configuration import load_config
from models.evaluation.ranking import rank_queries
from models.ranking_metrics import per_row_metrics
from models.recommenders.gru4rec import GRU4RecConfig
from models.recommenders.recommender import SharedConfig, with_shared
from models.recommenders.registry import CONFIGURATIONS, MULTI_DOMAIN, RECOMMENDERS, TRAINED, RecommenderEntry
from models.recommenders.sasrec import SASRec
from models.training.loop import TrainingConfig, fit
from models.vocabulary import TokenRange

TARGET = "food"
CPU = torch.device("cpu")
SMALL = EvaluationConfig(
    training=TrainingConfig(learning_rate=3e-3, batch_size=16, max_epochs=3, patience=10),
    shared=SharedConfig(width=16, inner_width=16),
    recommenders={"gru4rec": GRU4RecConfig(width=16, hidden_width=16)},
)


@pytest.fixture(scope="module")
def arms(dataset, composite_folder) -> dict[str, Arm]:
    composite = load_composite(composite_folder, dataset, TARGET)
    return {name: build_arm(dataset, TARGET, name, composite) for name in ARM_NAMES}


def grid_of(arms: dict[str, Arm], folder: Path, config: EvaluationConfig = SMALL) -> Grid:
    return Grid(tuple(arms.values()), config, folder, CPU)


class Epochs:
    """Remembers what ``fit`` reports; raises after *most* epochs, as a kill between epochs would end it."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.steps = 0
        self.epochs: list[int] = []

    def on_step(self, report):
        self.steps += 1

    def on_epoch(self, report):
        if self.most is not None and report.epoch >= self.most:
            raise KeyboardInterrupt
        self.epochs.append(report.epoch)


@pytest.mark.parametrize("name", TRAINED)
def test_every_arm_of_the_target_takes_as_many_steps_per_epoch_as_one_pass_over_the_original_rows(name, arms, tmp_path):
    """The composite has more rows and no more steps; mixed rows are passed over whole."""
    mixed = arms["mixed"]
    twice = mixed.rows.at(np.tile(np.arange(len(mixed.rows)), 2))
    arms = {**arms, "mixed": dataclasses.replace(mixed, rows=twice)}
    grid = grid_of(arms, tmp_path)
    steps = {}
    for arm in arms.values():
        counter = Epochs()
        cell = grid.run(name, arm, 1, counter)
        assert counter.steps == cell.epochs * cell.steps_per_epoch > 0
        steps[arm.name] = cell.steps_per_epoch

    module = build_seeded(name, arms["original"], SMALL, 1)
    passes = {arm: module.num_batches(arms[arm].rows, 16) for arm in ("original", "mixed")}
    assert steps == dict.fromkeys(ARM_NAMES, passes["original"]) | {"mixed": passes["mixed"]}
    assert passes["mixed"] > passes["original"]


@pytest.mark.parametrize("name", MULTI_DOMAIN)
def test_a_multi_domain_recommender_takes_the_steps_of_every_other(name, arms, tmp_path):
    """Per epoch, those of one pass over the mixed rows."""
    grid = grid_of(arms, tmp_path)
    cell = grid.run(name, arms["mixed"], 1)

    assert cell.steps_per_epoch == grid.run("sasrec", arms["mixed"], 1).steps_per_epoch
    assert cell.epochs == SMALL.training.max_epochs
    assert len(cell.ranks.all) == len(arms["mixed"].test)
    assert max(cell.ranks.all) <= len(arms["mixed"].candidates)
    assert cell.validation_ndcg_at_10 > 0


def test_the_key_of_a_multi_domain_cell_holds_its_own_hyper_parameters_and_the_domains(arms, tmp_path):
    """Both change its ranks, and those of no other recommender."""
    mixed = arms["mixed"]
    domains = (TokenRange(1, mixed.candidates.first), TokenRange(mixed.candidates.first + 1, mixed.num_items))
    grid = grid_of(arms, tmp_path)
    own = {"abxi": {"temperature": 0.05}, "cgrec": {"weight_temperature": 0.05}, "syncrec": {"mutual_weight": 0.05}}
    regrouped = dataclasses.replace(mixed, domains=domains)

    for name in MULTI_DOMAIN:
        changed = dataclasses.replace(with_shared(CONFIGURATIONS[name], SMALL.shared), **own[name])
        other = grid_of(arms, tmp_path, dataclasses.replace(SMALL, recommenders={name: changed}))
        keys = {grid.key(name, mixed, 1), other.key(name, mixed, 1), grid.key(name, regrouped, 1)}
        assert len(keys) == 3
        assert grid.key("sasrec", mixed, 1) == other.key("sasrec", mixed, 1)
    assert grid.key("sasrec", mixed, 1) == grid.key("sasrec", regrouped, 1)


def test_an_arm_of_more_rows_sees_all_of_them_over_its_passes(arms):
    """Epochs of fixed length walk an endless stream of whole passes: two original-sized epochs cover the composite."""
    arm = arms["regenerated"]
    module = build_seeded("sasrec", arm, SMALL, 1)
    objective = RowObjective(module, arm, steps_per_epoch=1, batch_size=16, seed=1)
    per_pass = objective.batches_per_pass
    tokens = [sum(len(b.targets_N) for b in objective.batches(epoch)) for epoch in range(1, 2 * per_pass + 1)]

    assert per_pass > 1
    assert sum(tokens[:per_pass]) == sum(tokens[per_pass:]) == int((arm.rows.lengths - 1).sum())


def test_epochs_are_a_function_of_seed_and_number_alone(arms):
    """Asked out of order, or by another objective, an epoch holds the same batches."""
    arm = arms["duplicated"]
    module = build_seeded("sasrec", arm, SMALL, 1)
    first, second = (RowObjective(module, arm, steps_per_epoch=3, batch_size=16, seed=1) for _ in range(2))
    in_order = [[b.targets_N.tolist() for b in first.batches(epoch)] for epoch in (1, 2, 3)]

    assert [[b.targets_N.tolist() for b in second.batches(epoch)] for epoch in (3, 2, 1)] == in_order[::-1]
    assert in_order[0] != in_order[1]


@pytest.mark.parametrize("name", ["sasrec", "gcegnn"])
def test_equal_seeds_start_from_equal_weights_in_every_arm_of_one_vocabulary(name, arms):
    """Arms differ in rows, not in luck; and global random state is left alone."""
    before = torch.get_rng_state()
    weights = [
        dict(build_seeded(name, arms[arm], SMALL, 7).named_parameters())
        for arm in ("original", "duplicated", "regenerated")
    ]
    other = dict(build_seeded(name, arms["original"], SMALL, 8).named_parameters())

    assert torch.equal(torch.get_rng_state(), before)
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key])
        assert torch.equal(value, weights[2][key])
    assert any(not torch.equal(value, other[key]) for key, value in weights[0].items())


def test_a_finished_cell_is_read_back_and_a_changed_one_is_computed_anew(arms, tmp_path):
    """The key follows content: seed, hyper-parameters, rows, held-out items."""
    grid = grid_of(arms, tmp_path)
    cell = grid.run("sasrec", arms["original"], 1)
    again = Epochs()

    assert grid.run("sasrec", arms["original"], 1, again) == cell
    assert again.epochs == []
    assert grid.finished("sasrec", arms["original"], 2) is None
    assert grid.finished("sasrec", arms["regenerated"], 1) is None
    wider = dataclasses.replace(SMALL, shared=dataclasses.replace(SMALL.shared, width=8))
    assert grid_of(arms, tmp_path, wider).finished("sasrec", arms["original"], 1) is None
    held_out = dataclasses.replace(arms["original"].test, targets=arms["original"].test.targets[::-1].copy())
    changed = dataclasses.replace(arms["original"], test=held_out)
    assert Grid((changed,), SMALL, tmp_path, CPU).finished("sasrec", changed, 1) is None
    assert [path.suffixes for path in tmp_path.glob("*.safetensors")] == [[".weights", ".safetensors"]]


@pytest.mark.parametrize(
    ("name", "arm_name"), [*((name, "regenerated") for name in TRAINED), *((name, "mixed") for name in MULTI_DOMAIN)]
)
def test_a_cell_that_was_interrupted_ends_with_the_same_ranks(name, arm_name, arms, tmp_path):
    """Killed after two epochs and called again: equal to the cell that was never stopped."""
    arm = arms[arm_name]
    whole = grid_of(arms, tmp_path / "whole").run(name, arm, 3)
    stopped = grid_of(arms, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        stopped.run(name, arm, 3, Epochs(most=2))
    assert stopped.finished(name, arm, 3) is None
    resumed = stopped.run(name, arm, 3)

    ignored = {"seconds": 0.0}
    assert dataclasses.replace(resumed, **ignored) == dataclasses.replace(whole, **ignored)


@pytest.mark.parametrize("schedule", ["constant", "plateau"])
def test_a_row_that_was_best_at_its_last_epoch_goes_on_when_it_is_given_more(schedule, arms, tmp_path):
    """Only the epochs that it lacks are trained, and it ends as one that had them from the start."""

    def config(epochs: int) -> EvaluationConfig:
        return dataclasses.replace(
            SMALL, training=dataclasses.replace(SMALL.training, max_epochs=epochs, schedule=schedule)
        )

    arm = arms["original"]
    cut = grid_of(arms, tmp_path / "cut", config(1)).run("sasrec", arm, 4)
    more = Epochs()
    longer = grid_of(arms, tmp_path / "cut", config(4)).run("sasrec", arm, 4, more)
    whole = grid_of(arms, tmp_path / "whole", config(4)).run("sasrec", arm, 4)

    assert cut.is_cut_short
    assert more.steps == 3 * whole.steps_per_epoch
    assert dataclasses.replace(longer, seconds=0.0) == dataclasses.replace(whole, seconds=0.0)


def test_the_original_rows_are_learned_once_whichever_bundle_stands_beside_them(arms, tmp_path):
    """The expert's advice changes what is ranked, not what was learned."""
    arm = arms["original"]
    rows = {part: Advised(queries, torch.randn(len(queries), 4)) for part, queries in
            (("validation", arm.validation), ("test", arm.test))}  # fmt: skip
    advice = {version: {"original": Advice(version, torch.randn(arm.num_items, 4), **rows)} for version in "ab"}
    again = Epochs()
    first, second = (
        Grid(tuple(arms.values()), SMALL, tmp_path, CPU, advice[version]).run("sasrec", arm, 1, progress)
        for version, progress in (("a", None), ("b", again))
    )

    assert again.steps == 0
    assert first.key != second.key
    assert None not in (first.advised, second.advised)
    dropped = {"key": "", "advised": None, "seconds": 0.0}
    assert dataclasses.replace(first, **dropped) == dataclasses.replace(second, **dropped)


@pytest.mark.parametrize("name", MULTI_DOMAIN)
def test_all_that_training_changes_survives_an_interruption(name, arms, tmp_path):
    """Killed after 14 of 21 steps: weights, domain weights and what counts the steps equal the unbroken run's."""
    nobody = arms["mixed"].validation.at(np.zeros(0, dtype=np.int64))
    arm = dataclasses.replace(arms["mixed"], validation=nobody)  # so that the last epoch's state is kept

    def train(file: Path, most: int | None = None):
        module = build_seeded(name, arm, SMALL, 3)
        objective = RowObjective(module, arm, steps_per_epoch=7, batch_size=16, seed=3)
        fit(module, objective, SMALL.training, resume_file=file, progress=Epochs(most))
        return module.state_dict()

    whole = train(tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped.safetensors", most=2)
    resumed = train(tmp_path / "stopped.safetensors")

    assert resumed.keys() == whole.keys()
    assert [key for key, value in resumed.items() if not torch.equal(value, whole[key])] == []


def test_a_schedule_of_its_own_changes_the_key_of_its_recommender_alone(arms, tmp_path):
    """Finished cells outlive an edit that is not about them, and two spellings of one schedule share a cell."""
    slow = dataclasses.replace(SMALL.training, learning_rate=1e-4)
    plain = grid_of(arms, tmp_path)
    own = grid_of(arms, tmp_path, dataclasses.replace(SMALL, schedules={"gru4rec": slow}))
    everywhere = grid_of(arms, tmp_path, dataclasses.replace(SMALL, training=slow))
    arm = arms["regenerated"]

    assert own.key("sasrec", arm, 1) == plain.key("sasrec", arm, 1) != everywhere.key("sasrec", arm, 1)
    assert own.key("gru4rec", arm, 1) == everywhere.key("gru4rec", arm, 1) != plain.key("gru4rec", arm, 1)


@dataclasses.dataclass(frozen=True)
class LongerGRU4RecConfig(GRU4RecConfig):
    """What ``GRU4RecConfig`` would be with one hyper-parameter more."""

    zoneout: float = 0.1


def test_a_new_hyper_parameter_of_one_recommender_changes_the_keys_of_no_other(arms, tmp_path, monkeypatch):
    """Finished cells of the others are read back: each key holds its own recommender's configuration alone."""
    config = dataclasses.replace(SMALL, recommenders={})
    before = {name: grid_of(arms, tmp_path, config).key(name, arms["mixed"], 1) for name in RECOMMENDERS}
    longer = dataclasses.replace(RECOMMENDERS["gru4rec"], config=f"{__name__}:LongerGRU4RecConfig")
    monkeypatch.setitem(RECOMMENDERS, "gru4rec", longer)
    after = {name: grid_of(arms, tmp_path, config).key(name, arms["mixed"], 1) for name in RECOMMENDERS}

    assert {name for name in RECOMMENDERS if before[name] != after[name]} == {"gru4rec"}


class LastItem(SASRec):
    """A recommender that is registered nowhere."""

    name = "last-item"


def test_a_new_recommender_is_a_line_in_the_registry(arms, tmp_path, monkeypatch):
    """Trained, ranked, kept as a cell and configured by its table, with no other place that knows its name."""
    entry = RecommenderEntry("trained", f"{__name__}:LastItem", RECOMMENDERS["sasrec"].config)
    monkeypatch.setitem(RECOMMENDERS, "last-item", entry)
    (tmp_path / "one.toml").write_text("[recommender.last-item]\nwidth = 8\ninner_width = 8\n")
    own = load_config(tmp_path / "one.toml").config_of("last-item")
    grid = grid_of(arms, tmp_path, dataclasses.replace(SMALL, recommenders={"last-item": own}))
    cell = grid.run("last-item", arms["original"], 1)

    assert own.width == 8
    assert (cell.recommender, cell.epochs) == ("last-item", SMALL.training.max_epochs)
    assert grid.finished("last-item", arms["original"], 1) == cell


def test_a_value_of_one_recommender_alone_changes_its_keys_alone(arms, tmp_path):
    """Two spellings of one configuration share a cell: for all, or for the one that takes it."""
    narrow = dataclasses.replace(SMALL, shared=dataclasses.replace(SMALL.shared, num_heads=1))
    alone = with_shared(CONFIGURATIONS["cl4srec"], narrow.shared)
    plain, everywhere = grid_of(arms, tmp_path), grid_of(arms, tmp_path, narrow)
    own = grid_of(arms, tmp_path, dataclasses.replace(SMALL, recommenders={**SMALL.recommenders, "cl4srec": alone}))
    arm = arms["mixed"]

    assert {name for name in RECOMMENDERS if own.key(name, arm, 1) != plain.key(name, arm, 1)} == {"cl4srec"}
    assert own.key("cl4srec", arm, 1) == everywhere.key("cl4srec", arm, 1)
    # Heads are nothing that these have.
    untouched = {name for name in RECOMMENDERS if everywhere.key(name, arm, 1) == plain.key(name, arm, 1)}
    assert untouched == {"gru4rec", "gcegnn", "popularity", "markov"}


def test_the_key_of_a_cell_is_the_hash_of_what_its_ranks_depend_on(arms, tmp_path):
    """Spelled out, as cells on disk are found by it: another spelling would compute all of them anew."""
    training = dataclasses.asdict(SMALL.training)
    assert training.pop("weight_decay") == 0.0  # it came later, and what was trained before had none
    content = {
        "version": 5,
        "recommender": "sasrec",
        "arm": arms["regenerated"].fingerprint,
        "budget": arms["original"].fingerprint,
        "config": {
            "training": training,
            "recommender": dataclasses.asdict(SMALL.shared),
        },
        "seed": 7,
        "device": "cpu",
        "torch": torch.__version__,
    }
    expected = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    assert grid_of(arms, tmp_path).key("sasrec", arms["regenerated"], 7) == expected


def test_a_recommender_trains_by_its_own_schedule(arms, tmp_path):
    """Half the batch size and one epoch: the cell equals one of a grid where everything has that schedule."""
    short = dataclasses.replace(SMALL.training, batch_size=8, max_epochs=1)
    own = grid_of(arms, tmp_path / "own", dataclasses.replace(SMALL, schedules={"sasrec": short}))
    everywhere = grid_of(arms, tmp_path / "everywhere", dataclasses.replace(SMALL, training=short))
    first, second = (grid.run("sasrec", arms["original"], 1) for grid in (own, everywhere))
    usual = own.run("gru4rec", arms["original"], 1)

    assert first.epochs == 1 < usual.epochs
    assert first.steps_per_epoch > usual.steps_per_epoch
    assert dataclasses.replace(first, seconds=0) == dataclasses.replace(second, seconds=0)


def test_a_damaged_cell_file_never_passes_for_a_result(arms, tmp_path):
    """Cells are replaced whole, so a truncated one means a damaged disk: an error, not a number."""
    grid = grid_of(arms, tmp_path)
    cell = grid.run("markov", arms["original"], 1)
    path = tmp_path / f"{cell.key}.json"
    path.write_text(path.read_text()[:-20])

    with pytest.raises(DatasetFormatError, match=cell.key):
        grid.finished("markov", arms["original"], 1)


class Oracle:
    """Scores the answer highest; it is told the answers in the order of the histories' text."""

    def __init__(self, queries, *, shuffle_seed: int | None = None) -> None:
        targets = queries.targets.copy()
        if shuffle_seed is not None:
            np.random.default_rng(shuffle_seed).shuffle(targets)
        self.answers = {
            tuple(queries.histories[row].tolist()): int(target) for row, target in enumerate(targets.tolist())
        }

    def scores(self, item_ids_BT, candidates):
        scores = torch.zeros(len(item_ids_BT), len(candidates))
        for row, items in enumerate(item_ids_BT.tolist()):
            answer = self.answers[tuple(item for item in items if item)]
            scores[row, answer - candidates.first] = 1.0
        return scores


class Constant:
    def scores(self, item_ids_BT, candidates):
        return torch.zeros(len(item_ids_BT), len(candidates))


def with_history(arm: Arm):
    queries = arm.test
    assert (queries.num_target_items > 0).all()
    histories = [tuple(history.tolist()) for history in queries.histories]
    assert len(set(histories)) == len(histories)
    return queries


def test_a_scorer_that_knows_the_label_scores_one_and_a_constant_scores_zero(arms):
    """Through the whole ranking: batching, sorting by length, candidate columns."""
    for name in ("original", "mixed"):
        queries = with_history(arms[name])
        knowing = rank_queries(Oracle(queries), queries, arms[name], CPU)
        constant = rank_queries(Constant(), queries, arms[name], CPU)

        assert set(knowing.all) == set(knowing.unseen) == {1}
        assert set(constant.all) == {len(arms[name].candidates)}
        assert constant.unseen == tuple(len(arms[name].candidates) - len(seen) for seen in queries.seen)


def test_random_scores_rank_the_held_out_items_at_chance(arms):
    """HR@10 among X items is 10 / X, within five standard errors over 100 draws."""
    queries = with_history(arms["original"])

    class Random:
        def __init__(self, seed):
            self.generator = torch.Generator().manual_seed(seed)

        def scores(self, item_ids_BT, candidates):
            return torch.rand(len(item_ids_BT), len(candidates), generator=self.generator)

    hits = [
        per_row_metrics(torch.tensor(rank_queries(Random(seed), queries, arms["original"], CPU).all))[:, 0].mean()
        for seed in range(100)
    ]
    chance = 10 / len(arms["original"].candidates)
    rows = 100 * len(queries)

    assert abs(float(torch.stack(hits).mean()) - chance) < 5 * (chance * (1 - chance) / rows) ** 0.5


def test_shuffled_labels_score_at_chance(arms):
    """A scorer that knows other users' labels is right as often as two users' labels agree by chance."""
    queries = with_history(arms["original"])
    shuffles = 200
    ranks = [
        rank_queries(Oracle(queries, shuffle_seed=seed), queries, arms["original"], CPU).all for seed in range(shuffles)
    ]
    right = float(np.mean(np.stack(ranks) == 1))
    label_shares = np.unique(queries.targets, return_counts=True)[1] / len(queries)
    chance = float((label_shares**2).sum())

    assert abs(right - chance) < 5 * (chance * (1 - chance) / (shuffles * len(queries))) ** 0.5


@pytest.mark.parametrize("name", ["original", "mixed"])
def test_the_unseen_ranking_leaves_out_what_the_user_had_and_nothing_else(arms, name):
    """By masking whole score rows, against random scores with many ties."""
    arm, queries = arms[name], with_history(arms[name])
    generator = np.random.default_rng(5)
    scores_of = {
        tuple(history.tolist()): generator.integers(0, 9, len(arm.candidates)).astype(np.float32)
        for history in queries.histories
    }

    class Given:
        def scores(self, item_ids_BT, candidates):
            histories = [tuple(item for item in items if item) for items in item_ids_BT.tolist()]
            return torch.from_numpy(np.stack([scores_of[history] for history in histories]))

    expected = []
    for history, target in zip(queries.histories, queries.targets.tolist(), strict=True):
        scores_X = scores_of[tuple(history.tolist())]
        had = {item for item in history.tolist() if item in range(arm.candidates.first, arm.candidates.last + 1)}
        rivals = [
            arm.candidates.first + x
            for x in range(len(scores_X))
            if scores_X[x] >= scores_X[target - arm.candidates.first]
        ]
        expected.append(len([item for item in rivals if item == target or item not in had]))

    assert list(rank_queries(Given(), queries, arm, CPU).unseen) == expected


def test_an_item_that_regeneration_put_into_a_history_is_not_one_that_the_user_had(arms, dataset):
    arm = arms["regenerated"]
    domain = dataset.vocabulary.token_range(TARGET)
    everything = Sequences.from_lists([list(range(domain.first, domain.last + 1))] * len(arm.test))

    served = with_served(arm, everything, domain).served

    assert [seen.tolist() for seen in served.seen] == [seen.tolist() for seen in arm.test.seen]


def test_the_held_out_item_takes_part_even_where_the_user_had_it_before():
    """A repeat purchase is a right answer, not one to leave out."""
    before, held_out = Sequences.from_lists([[7, 2, 7, 8, 7], [9]]), np.asarray([7, 8], dtype=np.int32)
    queries = build_queries(before, held_out, TokenRange(7, 9), TokenRange(7, 9))

    assert queries.histories[0].tolist() == [1, 1, 2, 1]
    assert [seen.tolist() for seen in queries.seen] == [[2], [3]]


def test_an_empty_history_is_ranked_by_popularity_in_the_arms_rows(arms):
    """A sequential model has nothing to say there; it is not asked."""
    arm = arms["original"]
    queries = arm.test
    nothing = type(queries)(
        queries.users,
        type(queries.histories)(np.zeros(0, np.int32), np.zeros(len(queries) + 1, np.int64)),
        queries.targets,
        Sequences.from_lists([[]] * len(queries)),
        np.zeros(len(queries), np.int64),
    )
    counts = np.bincount(arm.rows.token_ids, minlength=arm.num_items + 1)

    class Unasked:
        def scores(self, item_ids_BT, candidates):
            raise AssertionError("asked about an empty history")

    ranks = rank_queries(Unasked(), nothing, arm, CPU)

    assert list(ranks.all) == [int((counts[1:] >= counts[target]).sum()) for target in queries.targets]


def test_a_recommender_learns_the_next_item_that_the_data_hold(arms, tmp_path):
    """On data whose next item follows from the last, training beats popularity by far."""
    config = dataclasses.replace(
        SMALL, training=TrainingConfig(learning_rate=1e-2, batch_size=16, max_epochs=40, patience=40)
    )
    grid = grid_of(arms, tmp_path, config)
    ndcg = {
        name: float(per_row_metrics(torch.tensor(grid.run(name, arms["original"], 1).ranks.all))[:, 1].mean())
        for name in ("sasrec", "popularity")
    }

    assert ndcg["sasrec"] > ndcg["popularity"] + 0.1
