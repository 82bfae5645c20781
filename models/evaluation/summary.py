"""
From cells to statements: means over seeds, groups of users, paired differences with intervals, checks.

The main table holds the users whose history has at least one target item. Groups split all users by how many it has.

Shapes: N = test users, M = metrics, S = seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.evaluation.arms import ARM_NAMES, ArmName, Queries, RowName
from models.evaluation.bootstrap import Interval, bootstrap_gains
from models.evaluation.cells import Cell
from models.evaluation.ranking import RankingName
from models.evaluation.served import TARGET_EXPERT
from models.ranking_metrics import METRICS, broken_inequalities, per_row_metrics
from models.recommenders.registry import COUNTED, RECOMMENDERS, TRAINED

# What each arm is compared with: a gain over ``original`` counts only if ``duplicated`` does not show it too.
BASELINE_ARMS: tuple[ArmName, ...] = ("original", "duplicated")
# What regenerated histories are compared with as well: the same expert's advice without regeneration.
SERVED_ROWS: tuple[RowName, ...] = ("served", "served with expert")
WITHOUT_REGENERATION: RowName = "with expert"
EXPERT_LINE: tuple[str, RowName] = (TARGET_EXPERT, "mixed")


@dataclass(frozen=True)
class Group:
    """Users whose history holds least..most target items."""

    name: str
    least: int
    most: float

    def members(self, num_target_items_N: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Mask [N]."""
        return (num_target_items_N >= self.least) & (num_target_items_N <= self.most)


MAIN = Group("1 or more", 1, float("inf"))
# The users whom other domains should help: the target knows little or nothing of them.
COLD = Group("0-2", 0, 2)
GROUPS = (Group("0", 0, 0), Group("1-2", 1, 2), Group("3-5", 3, 5), Group("6 or more", 6, float("inf")))


@dataclass(frozen=True)
class Score:
    """
    One recommender on one arm, one population.

    Args:
        group: population, by target items in the history.
        users: its size.
        means: per metric, the mean over users and seeds.
        deviations: per metric, the standard deviation over seeds of the mean over users; 0 with one seed.
    """

    recommender: str
    arm: RowName
    group: str
    users: int
    means: Mapping[str, float]
    deviations: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """
    Paired difference in one metric: of two lines of one recommender, of a trained recommender and a counted one on the
    original rows, of served lines and whoever else reads mixed histories, or, for users with few target items, of
    line ``served`` and any other.

    Args:
        group: population, by target items in the history.
        baseline_recommender, baseline: what is subtracted.
        without_leak_hits: True where users that the leak audit hit are left out.
        interval: of the mean difference over users (arm minus baseline).
        relative: of difference over the baseline's mean; None where too few users hit for a ratio.
        per_seed: the differences of the single seeds.
    """

    recommender: str
    arm: RowName
    baseline_recommender: str
    baseline: RowName
    metric: str
    group: str
    without_leak_hits: bool
    users: int
    interval: Interval
    relative: Interval | None
    per_seed: tuple[float, ...]


@dataclass(frozen=True)
class CellRun:
    """What one recommender's training on one arm took, per seed."""

    recommender: str
    arm: RowName
    seeds: tuple[int, ...]
    best_epochs: tuple[int, ...]
    epochs: tuple[int, ...]
    steps_per_epoch: int
    validation_ndcg_at_10: tuple[float | None, ...]
    num_parameters: int
    seconds: float

    @property
    def seeds_cut_short(self) -> tuple[int, ...]:
        """The seeds whose best epoch is the last one trained (``Cell.is_cut_short``)."""
        ends = zip(self.seeds, self.best_epochs, self.epochs, strict=True)
        return tuple(seed for seed, best, last in ends if 0 < best == last)


@dataclass(frozen=True)
class Results:
    """Everything that the report states about the cells; ``broken_checks`` is empty if the metrics are consistent."""

    scores: tuple[Score, ...]
    comparisons: tuple[Comparison, ...]
    runs: tuple[CellRun, ...]
    broken_checks: tuple[str, ...]


@dataclass(frozen=True)
class _Pair:
    recommender: str
    arm: RowName
    baseline_recommender: str
    baseline: RowName


# Per (recommender, arm), per seed: metrics [N, M].
_MetricValues = Mapping[tuple[str, RowName], Mapping[int, npt.NDArray[np.float64]]]


def summarise(
    cells: Iterable[Cell], queries: Queries, *, ranking: RankingName, leak_hits: Sequence[int], seed: int
) -> Results:
    """
    State what the cells say.

    Args:
        cells: of one target, all over the same test users.
        queries: those users.
        ranking: which of each cell's rankings to state.
        leak_hits: positions in the dataset of users to leave out in the second reading of every comparison.
        seed: of the bootstrap.
    """
    by_run: dict[tuple[str, RowName], list[Cell]] = {}
    for cell in cells:
        by_run.setdefault((cell.recommender, cell.arm), []).append(cell)
    values = {run: {cell.seed: _values_NM(cell, ranking) for cell in group} for run, group in by_run.items()}
    return Results(
        scores=tuple(
            _score(recommender, arm, group, np.stack([*per_seed.values()]), queries)
            for (recommender, arm), per_seed in values.items()
            for group in (MAIN, *GROUPS)
            if group.members(queries.num_target_items).any()
        ),
        comparisons=(
            *_floor_comparisons(values, queries, seed),
            *_arm_comparisons(values, queries, leak_hits, seed),
            *_rival_comparisons(values, queries, seed),
            *_expert_comparisons(values, queries, seed),
            *_cold_comparisons(values, queries, seed),
        ),
        # Lines without a run of their own say nothing about training.
        runs=tuple(_run(group) for (name, row), group in by_run.items() if row in ARM_NAMES and name in RECOMMENDERS),
        broken_checks=tuple(
            f"{cell.recommender}, {cell.arm}, seed {cell.seed}: {broken}"
            for group in by_run.values()
            for cell in group
            for broken in broken_inequalities(_means(_values_NM(cell, ranking)))
        ),
    )


def _arm_comparisons(
    values: _MetricValues, queries: Queries, leak_hits: Sequence[int], seed: int
) -> Iterator[Comparison]:
    main_N = MAIN.members(queries.num_target_items)
    clean_N = ~np.isin(queries.users, np.asarray(leak_hits, dtype=np.int64))
    for (recommender, arm), per_seed in values.items():
        baselines = (*BASELINE_ARMS, WITHOUT_REGENERATION) if arm in SERVED_ROWS else BASELINE_ARMS
        for baseline in baselines:
            if arm in ("original", baseline) or (recommender, baseline) not in values:
                continue
            pair = _Pair(recommender, arm, recommender, baseline)
            baseline_values = values[recommender, baseline]
            yield from _compare(pair, per_seed, baseline_values, main_N, seed=seed)
            if leak_hits and arm in ("regenerated", *SERVED_ROWS):
                yield from _compare(
                    pair, per_seed, baseline_values, main_N & clean_N, without_leak_hits=True, seed=seed
                )


def _rival_comparisons(values: _MetricValues, queries: Queries, seed: int) -> Iterator[Comparison]:
    """Regenerated histories against whoever else reads the mixed history: models of mixed rows and the decoders."""
    main_N = MAIN.members(queries.num_target_items)
    for (recommender, arm), per_seed in values.items():
        for (other, line), other_values in values.items():
            if arm not in SERVED_ROWS or recommender in COUNTED or line != "mixed" or other in COUNTED:
                continue
            pair = _Pair(recommender, arm, other, line)
            yield from _compare(pair, per_seed, _repeated(other_values, per_seed), main_N, seed=seed)


def _repeated(
    values: Mapping[int, npt.NDArray[np.float64]], seeds: Iterable[int]
) -> Mapping[int, npt.NDArray[np.float64]]:
    """A line of one seed takes none, so it is the same under every seed."""
    return dict.fromkeys(seeds, *values.values()) if len(values) == 1 else values


def _expert_comparisons(values: _MetricValues, queries: Queries, seed: int) -> Iterator[Comparison]:
    """Is the target expert, asked for a ranking itself, ahead of a recommender that knows the target's rows alone?"""
    main_N = MAIN.members(queries.num_target_items)
    for (recommender, arm), per_seed in values.items():
        if arm != "original" or recommender not in TRAINED or EXPERT_LINE not in values:
            continue
        pair = _Pair(*EXPERT_LINE, recommender, arm)
        yield from _compare(pair, _repeated(values[EXPERT_LINE], per_seed), per_seed, main_N, seed=seed)


def _cold_comparisons(values: _MetricValues, queries: Queries, seed: int) -> Iterator[Comparison]:
    """For users with at most two target items: regenerated histories against every other way to serve them."""
    cold_N = COLD.members(queries.num_target_items)
    for (recommender, arm), per_seed in values.items():
        for (other, line), other_values in values.items():
            if arm != "served" or line in SERVED_ROWS or recommender in COUNTED:
                continue
            if (other in TRAINED and other != recommender and line != "mixed") or (
                other in COUNTED and line != "original"
            ):
                continue
            pair = _Pair(recommender, arm, other, line)
            baseline = _repeated(other_values, per_seed)
            yield from _compare(pair, per_seed, baseline, cold_N, group=COLD.name, seed=seed)


def _floor_comparisons(values: _MetricValues, queries: Queries, seed: int) -> Iterator[Comparison]:
    """Is a trained recommender worth its training? Popularity and a Markov chain say so."""
    main_N = MAIN.members(queries.num_target_items)
    for (recommender, arm), per_seed in values.items():
        for floor in COUNTED:
            if arm != "original" or recommender in COUNTED or (floor, arm) not in values:
                continue
            (counted_NM,) = values[floor, arm].values()  # no seed changes it
            pair = _Pair(recommender, arm, floor, arm)
            yield from _compare(pair, per_seed, dict.fromkeys(per_seed, counted_NM), main_N, seed=seed)


def _values_NM(cell: Cell, ranking: RankingName) -> npt.NDArray[np.float64]:
    values_NM: npt.NDArray[np.float64] = per_row_metrics(torch.tensor(cell.ranks.among(ranking))).numpy()
    return values_NM


def _means(values_NM: npt.NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(METRICS, values_NM.mean(axis=0).tolist(), strict=True))


def _score(
    recommender: str, arm: RowName, group: Group, values_SNM: npt.NDArray[np.float64], queries: Queries
) -> Score:
    members_N = group.members(queries.num_target_items)
    per_seed_SM = values_SNM[:, members_N].mean(axis=1)
    deviations_M = per_seed_SM.std(axis=0, ddof=1) if len(per_seed_SM) > 1 else np.zeros(per_seed_SM.shape[1])
    return Score(
        recommender,
        arm,
        group.name,
        int(members_N.sum()),
        _means(per_seed_SM),
        dict(zip(METRICS, deviations_M.tolist(), strict=True)),
    )


def _compare(
    pair: _Pair,
    values: Mapping[int, npt.NDArray[np.float64]],
    baseline_values: Mapping[int, npt.NDArray[np.float64]],
    members_N: npt.NDArray[np.bool_],
    *,
    group: str = MAIN.name,
    without_leak_hits: bool = False,
    seed: int,
) -> list[Comparison]:
    seeds = sorted(values.keys() & baseline_values.keys())  # a seed is compared with itself only
    if not members_N.any() or not seeds:
        return []
    baseline_SNM = np.stack([baseline_values[one][members_N] for one in seeds])
    difference_SNM = np.stack([values[one][members_N] for one in seeds]) - baseline_SNM
    gains = bootstrap_gains(difference_SNM.mean(axis=0), baseline_SNM.mean(axis=0), seed=seed)
    return [
        Comparison(
            pair.recommender,
            pair.arm,
            pair.baseline_recommender,
            pair.baseline,
            metric,
            group,
            without_leak_hits,
            int(members_N.sum()),
            interval,
            relative,
            tuple(difference_SNM[:, :, column].mean(axis=1).tolist()),
        )
        for column, (metric, (interval, relative)) in enumerate(zip(METRICS, gains, strict=True))
    ]


def _run(cells: Sequence[Cell]) -> CellRun:
    first = cells[0]
    return CellRun(
        first.recommender,
        first.arm,
        tuple(cell.seed for cell in cells),
        tuple(cell.best_epoch for cell in cells),
        tuple(cell.epochs for cell in cells),
        first.steps_per_epoch,
        tuple(cell.validation_ndcg_at_10 for cell in cells),
        first.num_parameters,
        round(sum(cell.seconds for cell in cells), 1),
    )
