"""
Whether regeneration helps a recommender of one target, tried on validation items before anybody relies on it.

A SASRec learns the target's original rows, and another the composite at each setting of the dial (``HINTS``), by equal
budgets (``evaluation.cells``). Each ranks the validation items after the target-only and after the regenerated
history. Of these ways, the original rows after target-only histories among them, the guard takes the one whose gain
over that is largest after ``GUARD_ERRORS`` standard errors are taken off; so where no gain stands out from the noise,
nothing is replaced. Each way is measured with the target expert's log-probabilities added, too
(``evaluation.advice``): what a service that asks both has, and what regeneration must add to.

What is chosen on few users may still harm others: the standard error knows of users, not of seeds
(docs/experiments/a-stricter-guard.md).

Shapes: N = validation rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Bundle, with_tunings
from models.composite.log_regeneration import regenerate_log
from models.composite.mixed_log import LogReader
from models.composite.regenerated_rows import composite_rows
from models.data.dataset import Dataset, Sequences
from models.decoding.anticipate import RUN_ITEMS
from models.decoding.regenerator import Regenerator
from models.decoding.rules import GUARDED_RULE
from models.evaluation.advice import Advised, choose_weight
from models.evaluation.arms import Arm, Queries, build_arm, keep_domain
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.ranking import Ranks, rank_queries
from models.evaluation.served import DecoderScorer, advised
from models.evaluation.trained import Trainings
from models.network.expert_parts import table_of
from models.ranking_metrics import ndcg_at_k
from models.recommenders.recommender import Scorer
from models.training.loop import Progress
from models.training.objective import trainable_rows
from models.tuning import Guard

# Where the dial is tried beside "replace nothing", which is always a candidate. At "replace all" alone: every setting
# costs a training, and one hint a run gave what three give where they were compared.
HINTS = (RUN_ITEMS,)
RECOMMENDER = "sasrec"
# Fewer validation users show nothing.
LEAST_USERS = 2
# The best of three ways looks better than it is: of three gains that are nothing but noise one exceeds two standard
# errors in 7 of 100 trials, and one standard error in 40. The expert's weight is one more choice after that one.
GUARD_ERRORS = 2.0
EXPERT_ERRORS = 1.0


@dataclass(frozen=True)
class Way:
    """
    One way to use regeneration, on validation.

    Args:
        training_hints, serving_hints: as in ``tuning.Guard``; both 0 are the original rows and target-only histories.
        ndcg_at_10: mean among the items that the user has not had.
        gain: the mean paired difference to the original way.
        standard_error: of that mean, over users.
        expert_weight: of the target expert's log-probabilities beside the recommender's; 0 is the recommender alone.
    """

    training_hints: int
    serving_hints: int
    ndcg_at_10: float
    gain: float = 0.0
    standard_error: float = 0.0
    expert_weight: float = 0.0

    def sure_gain(self, errors: float) -> float:
        """What is left of the gain when so many standard errors are taken off."""
        return self.gain - errors * self.standard_error


@dataclass(frozen=True)
class RegenerationTrial:
    """
    What was tried for one target.

    Args:
        target: the domain.
        num_rows: validation rows with a target item in their history; the others take no part.
        expert_ndcg_at_10: the target expert alone on the mixed histories, by both its readings.
        ways: of the recommender alone, the original way first.
        with_expert: each of *ways* with the expert's log-probabilities added, at the best weight.
    """

    target: str
    num_rows: int
    expert_ndcg_at_10: float
    ways: tuple[Way, ...]
    with_expert: tuple[Way, ...] = ()

    @property
    def original(self) -> Way:
        """The recommender of the original rows after target-only histories."""
        return self.ways[0]

    @property
    def chosen(self) -> Way:
        """The way with the largest sure gain; the original one has 0."""
        return max(self.ways, key=lambda way: way.sure_gain(GUARD_ERRORS))

    @property
    def expert_is_behind(self) -> bool:
        """Whether the expert, which reads strictly more, ranks worse than the recommender of the original rows."""
        return self.expert_ndcg_at_10 < self.original.ndcg_at_10

    @property
    def guard(self) -> Guard:
        """What the bundle keeps of it."""
        both = self.chosen_with_expert
        weight = 0.0 if both is None else both.expert_weight
        finding = f"{self._finding()}{self._finding_with_expert()}"
        return Guard(self.chosen.training_hints, self.chosen.serving_hints, finding, weight)

    @property
    def chosen_with_expert(self) -> Way | None:
        """The chosen way with the expert, where it gains more after ``EXPERT_ERRORS`` than without; else None."""
        if not self.with_expert:
            return None
        both = self.with_expert[self.ways.index(self.chosen)]
        return both if both.sure_gain(EXPERT_ERRORS) > self.chosen.sure_gain(EXPERT_ERRORS) else None

    def _finding_with_expert(self) -> str:
        both = self.chosen_with_expert
        if both is None:
            return ""
        plain = self.with_expert[0]
        without = "" if both is plain else f"; without regeneration {plain.ndcg_at_10:.4f}"
        return (
            f" With the expert's log-probabilities added at weight {both.expert_weight:g}: {both.ndcg_at_10:.4f}, "
            f"{_percent(both, self.original)}{without}."
        )

    def _finding(self) -> str:
        chosen, original = self.chosen, self.original
        among = f"NDCG@10 of SASRec among unseen items, {self.num_rows:,} validation users of {self.target}"
        if len(self.ways) == 1:
            return f"Nothing is replaced: there are too few users of {self.target} to try by."
        if chosen is original:
            best = max(self.ways[1:], key=lambda way: way.gain)
            return (
                f"Nothing is replaced: no way to regenerate stood out from the original rows ({among}: "
                f"{original.ndcg_at_10:.4f}; the best other way {best.ndcg_at_10:.4f}, {_percent(best, original)})."
            )
        rows = (
            f"training rows with at most {chosen.training_hints} hints a run"
            if chosen.training_hints
            else ("the original training rows")
        )
        history = "regenerated live histories" if chosen.serving_hints else "live histories passed through"
        return (
            f"{rows[0].upper()}{rows[1:]} and {history} were best ({among}: {chosen.ndcg_at_10:.4f} instead of "
            f"{original.ndcg_at_10:.4f}, {_percent(chosen, original)})."
        )


def try_regeneration(
    dataset: Dataset,
    bundle: Bundle,
    target: str,
    *,
    config: EvaluationConfig,
    device: torch.device,
    run_directory: Path,
    recommenders: Path | None = None,
    seed: int = 2025,
    progress: Progress | None = None,
) -> RegenerationTrial:
    """
    Try every way for *target*.

    Only training sequences are regenerated and learned from; validation items are ranked, and test items are not.

    Args:
        bundle: trained on this very dataset; its guards are not kept to.
        config: schedule and hyper-parameters of the recommenders; ``evaluation.configuration.tuned_config`` in use.
        run_directory: where recommenders are kept, to go on from, until the bundle is written.
        recommenders: another folder for them, whose files stay: that of an evaluation's cells, for one.
        seed: of the recommenders.

    Raises:
        UnknownDomainError: no such domain.
        ResumeMismatchError: *run_directory* belongs to another run.
    """
    original = build_arm(dataset, target, "original", None)
    mixed = build_arm(dataset, target, "mixed", None)
    rows = np.flatnonzero(original.validation.num_target_items > 0)
    queries, mixed_queries = original.validation.at(rows), mixed.validation.at(rows)
    if not len(original.rows) or len(queries) < LEAST_USERS:
        return RegenerationTrial(target, len(queries), 0.0, (Way(0, 0, 0.0),))
    expert = DecoderScorer(bundle.expert_parts(target))
    expert_ndcg_N = _ndcg(expert, mixed_queries, mixed, device)

    trainings = Trainings(original, config, run_directory if recommenders is None else recommenders, device)

    def trained(arm: Arm) -> Scorer:
        return trainings.train(RECOMMENDER, arm, seed, progress).module

    states_ND = advised(bundle, target, queries, mixed_queries).states_ND
    table_XD = table_of(bundle.expert_parts(target), dataset.vocabulary.token_range(target))

    def measured(scorer: Scorer, histories: Queries) -> _Measured:
        weight, ranks = choose_weight(scorer, Advised(histories, states_ND), table_XD, original, device)
        return _Measured(_ndcg(scorer, histories, original, device), _ndcg_of(ranks), weight)

    ordinary = trained(original)
    found = {(0, 0): measured(ordinary, queries)}
    for hints in HINTS:
        histories = served_histories(bundle, target, mixed_queries.histories, hints)
        served = dataclasses.replace(queries, histories=histories)
        arm = composite_arm(original, dataset, bundle, target, hints)
        composite = trained(arm)
        found[0, hints] = measured(ordinary, served)
        found[hints, 0] = measured(composite, queries)
        found[hints, hints] = measured(composite, served)
    baseline_N = found[0, 0].alone_N
    ways = [_way(*hints, one.alone_N, baseline_N) for hints, one in found.items()]
    with_expert = [_way(*hints, one.with_expert_N, baseline_N, one.weight) for hints, one in found.items()]
    return RegenerationTrial(target, len(queries), _mean(expert_ndcg_N), tuple(ways), tuple(with_expert))


class _Measured(NamedTuple):
    """NDCG@10 of every validation row by a recommender alone, and with the expert at its best weight."""

    alone_N: npt.NDArray[np.float64]
    with_expert_N: npt.NDArray[np.float64]
    weight: float


def try_targets(
    dataset: Dataset,
    bundle: Bundle,
    *,
    config: EvaluationConfig,
    device: torch.device,
    run_directory: Path,
    recommenders: Path | None = None,
    seed: int = 2025,
    progress: Progress | None = None,
) -> tuple[RegenerationTrial, ...]:
    """``try_regeneration`` for every domain."""
    return tuple(
        try_regeneration(
            dataset,
            bundle,
            target,
            config=config,
            device=device,
            run_directory=run_directory,
            recommenders=recommenders,
            seed=seed,
            progress=progress,
        )
        for target in dataset.vocabulary.domains
    )


def with_guards(bundle: Bundle, trials: Sequence[RegenerationTrial]) -> Bundle:
    """The bundle with what every target's trial found, on disk too; the numbers lie in its provenance."""
    guards = {trial.target: trial.guard for trial in trials}
    tunings = [dataclasses.replace(bundle.tuning(domain), guard=guards[domain]) for domain in bundle.vocabulary.domains]
    numbers = {trial.target: dataclasses.asdict(trial) for trial in trials}
    return with_tunings(bundle, tunings, {**bundle.provenance, "trials": numbers})


def _way(
    training_hints: int,
    serving_hints: int,
    values_N: npt.NDArray[np.float64],
    baseline_N: npt.NDArray[np.float64],
    expert_weight: float = 0.0,
) -> Way:
    gains_N = values_N - baseline_N
    error = float(gains_N.std(ddof=1)) / math.sqrt(len(gains_N))
    return Way(training_hints, serving_hints, _mean(values_N), _mean(gains_N), error, expert_weight)


def _mean(values_N: npt.NDArray[np.float64]) -> float:
    return float(values_N.mean())


def _percent(way: Way, original: Way) -> str:
    """The gain and its standard error in percent of the original, or in points where that is 0."""
    if not original.ndcg_at_10:
        return f"{way.gain:+.4f} ± {way.standard_error:.4f}"
    return f"{100 * way.gain / original.ndcg_at_10:+.1f} % ± {100 * way.standard_error / original.ndcg_at_10:.1f}"


def _ndcg(scorer: Scorer, queries: Queries, arm: Arm, device: torch.device) -> npt.NDArray[np.float64]:
    return _ndcg_of(rank_queries(scorer, queries, arm, device))


def _ndcg_of(ranks: Ranks) -> npt.NDArray[np.float64]:
    values_N: npt.NDArray[np.float64] = ndcg_at_k(torch.tensor(ranks.unseen), 10).numpy()
    return values_N


def served_histories(bundle: Bundle, target: str, histories: Sequences, hints: int) -> Sequences:
    """Mixed *histories* regenerated with so many hints a run, in the arm's numbers."""
    regenerator = _regenerator(bundle, target, hints)
    results = regenerator.regenerate(list(histories), target)
    return keep_domain(
        Sequences.from_lists(result.token_ids for result in results), bundle.vocabulary.token_range(target)
    )


def composite_arm(original: Arm, dataset: Dataset, bundle: Bundle, target: str, hints: int) -> Arm:
    """*original* with the rows of the composite with so many hints a run."""
    domain = dataset.vocabulary.token_range(target)
    log = LogReader.of(dataset.vocabulary, bundle.vocabulary, target, everything=False).read(dataset)
    users = regenerate_log(log, _regenerator(bundle, target, hints))
    composite = Sequences.from_lists(row.token_ids for row in composite_rows(log, users))
    rows = keep_domain(composite, domain)
    return dataclasses.replace(original, name="regenerated", rows=rows.at(trainable_rows(rows)))


def _regenerator(bundle: Bundle, target: str, hints: int) -> Regenerator:
    """What regenerates for *target* with so many hints a run, whatever the bundle's own guard."""
    tuning = dataclasses.replace(bundle.tuning(target), guard=Guard(hints, hints, "on trial"))
    # Of the other domains' tunings nothing is read when this one is the target.
    tunings = (tuning,) * len(bundle.vocabulary.domains)
    return Regenerator(dataclasses.replace(bundle, tunings=tunings), GUARDED_RULE)
