"""
A check from end to end: a prepared dataset and a target in, a verdict out; resumable at every epoch.

    1. read the cheap signs, and stop where they say that nothing can come of it;
    2. time a few steps, and plan epochs and seeds for the minutes that there are;
    3. train base and target expert; regenerate training rows and histories, everything the dial allows;
    4. train the recommender on original, duplicated and regenerated rows, each with every seed;
    5. rank validation and test items after target-only and regenerated histories, with and without the expert;
    6. judge (``verdict``), and audit for leaks.

Everything lies in one folder, and what is there already is read back:
    plan.json, bundle/, bundle.run/, composite/, cells/, own/ (for a team's own recommender)

Shapes: S = seeds, N = held-out rows, validation rows first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from models.bundle import Bundle
from models.check.own_recommender import Exchange, ranks_of_lists, read_scores, run_command, write_exchange
from models.check.plans import Plan, keep_plan, kept_plan, make_plan, time_steps
from models.check.signs import Signs, read_signs
from models.check.verdict import LineValues, Verdict, judge
from models.composite.folder import ensure_composite
from models.data.dataset import Dataset, Sequences
from models.decoding.rules import DEFAULT_RULE, Dial
from models.errors import ConfigurationError
from models.evaluation.advice import Advice
from models.evaluation.arms import Arm, ArmName, Composite, Queries, build_arm, keep_domain, load_composite
from models.evaluation.cells import Cell, Grid
from models.evaluation.leak_audit import LeakAudit, audit_leaks
from models.evaluation.ranking import Ranks
from models.evaluation.served import advised, regenerate_histories
from models.network.expert_parts import table_of
from models.ranking_metrics import ndcg_at_k
from models.recommenders.registry import COUNTED
from models.training.loop import Progress, settings_of
from models.training.pipeline import PipelineConfig, find_trained, train_bundle

ARMS: tuple[ArmName, ...] = ("original", "duplicated", "regenerated")
FIRST_SEED = 2025
# Fewer held-out rows of either kind have no interval.
LEAST_ROWS = 2
# A check judges regeneration itself, not what a guard would leave of it.
DIAL: Dial = "all"
OWN = "your recommender"

Stage = Callable[[str, float], None]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class CheckRequest:
    """
    What to check.

    Args:
        target: domain whose items are ranked.
        recommender: trained or counted one of the registry; what is judged where no own one is given.
        minutes: to spend on training.
        seeds: of the recommender; None for as many as there is time for.
        folder: where everything is kept.
        device: where to train.
        anyway: go on where the signs say stop.
        scores: the team's own scores.
        command: the team's own recommender, to be run.
    """

    target: str
    recommender: str
    minutes: float
    seeds: int | None
    folder: Path
    device: torch.device
    anyway: bool = False
    scores: Path | None = None
    command: str | None = None


@dataclass(frozen=True)
class CheckReport:
    """
    What a check found.

    Args:
        sentence: the finding.
        next_steps: what to do with it.
        split: how the dataset holds items out, in words.
        ndcg_at_10: of every line, the mean over validation and over test users; none without a verdict.
        verdict: None where signs or forecast ended the check.
        plan: None where the signs did.
        warnings: what makes the verdict less than it could be.
    """

    dataset: str
    dataset_fingerprint: str
    sentence: str
    next_steps: tuple[str, ...]
    split: str
    ndcg_at_10: Mapping[str, tuple[float, float]]
    signs: Signs
    verdict: Verdict | None
    plan: Plan | None
    audits: tuple[LeakAudit, ...]
    warnings: tuple[str, ...]


def check(
    dataset: Dataset, request: CheckRequest, *, tell: Tell, stage: Stage, progress: Progress | None = None
) -> CheckReport:
    """
    Check whether a bundle would help a recommender of ``request.target``.

    Args:
        tell: called with a line for whoever waits.
        stage: called with a piece of work and the fraction of it that is done.
        progress: receiver of training reports.

    Raises:
        UnknownDomainError: no such domain.
        ConfigurationError: too few users have a held-out item of the target.
        OwnRecommenderError: the team's recommender cannot be judged.
    """
    signs = read_signs(dataset, request.target)
    tell(describe_signs(signs))
    if signs.stop is not None and not request.anyway:
        reason = f"Nothing to gain: {signs.stop[0].lower()}{signs.stop[1:]}"
        return _without_verdict(dataset, signs, None, reason, ("Leave it, or give --anyway to train and see.",))
    original = build_arm(dataset, request.target, "original", None)
    rows = RankedRows.of(original)
    plan = _planned(dataset, request, original, tell)
    if plan.is_brief and not request.anyway:
        return _without_verdict(dataset, signs, plan, _too_brief(request, plan), (f"Give --minutes {_minutes(plan)}.",))
    bundle = _trained(dataset, request, plan.pipeline(request.target), progress)
    composite = _composite(dataset, request, bundle, stage)
    grid = _grid(dataset, request, plan, bundle, composite, rows)
    exchange = write_exchange(request.folder / "own", grid.arms, dataset.vocabulary, request.target)
    cut_short: tuple[str, ...] = ()
    if request.scores is not None or request.command is not None:
        lines, name = _own_lines(request, exchange, rows, tell), OWN
    else:
        cells = _run_cells(grid, request, plan, tell, progress)
        lines, name = _lines_of(cells, rows), request.recommender
        cut_short = _cut_short(cells) if plan.schedule == "plateau" else ()
    verdict = judge(request.target, name, lines, seed=FIRST_SEED)
    brief = (_too_brief(request, plan),) if plan.is_brief else ()
    return CheckReport(
        dataset=_name_of(dataset),
        dataset_fingerprint=dataset.fingerprint,
        sentence=" ".join((*brief, verdict.sentence)),
        next_steps=verdict.next_steps,
        split=dataset.split_sentence,
        ndcg_at_10={
            name: (float(line.validation_SN.mean()), float(line.test_SN.mean())) for name, line in lines.items()
        },
        signs=signs,
        verdict=verdict,
        plan=plan,
        audits=audit_leaks(dataset, request.target, composite),
        warnings=cut_short,
    )


@dataclass(frozen=True)
class RankedRows:
    """The held-out rows with a target item in their history, validation rows first; places in the queries of an arm."""

    validation: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]

    @classmethod
    def of(cls, original: Arm) -> RankedRows:
        """Those of an arm; raises ConfigurationError where there are too few to judge by."""
        validation, test = (np.flatnonzero(part.num_target_items > 0) for part in (original.validation, original.test))
        if min(len(validation), len(test)) < LEAST_ROWS:
            raise ConfigurationError(
                f"{len(validation)} validation and {len(test)} test users have a history of the target: too few to "
                "judge by"
            )
        return cls(validation, test)

    def queries(self, arm: Arm) -> Queries:
        """Both, one after the other."""
        return _joined(arm.validation.at(self.validation), arm.test.at(self.test))

    def split(self, values_SN: npt.NDArray[np.float64], rows: str) -> LineValues:
        """Values of ``queries`` as those of validation and of test."""
        N = len(self.validation)
        return LineValues(values_SN[:, :N], values_SN[:, N:], rows)


def describe_signs(signs: Signs) -> str:
    """The signs in a line."""
    nats = signs.nats
    told = (
        ""
        if nats is None
        else f"; they tell {nats.mean:+.4f} [{nats.low:+.4f}, {nats.high:+.4f}] nats beyond the user's own"
    )
    return (
        f"{signs.linked_users:,} of {signs.users:,} users of {signs.target} ({signs.linked_share:.0%}) have items of "
        f"other domains, which come before {signs.informed_share:.0%} of its items{told}"
    )


def _too_brief(request: CheckRequest, plan: Plan) -> str:
    return (
        f"Undecided: {request.minutes:g} minutes on this machine train too little to judge by ({_epochs(plan)}); about "
        f"{_minutes(plan)} would do."
    )


def _minutes(plan: Plan) -> int:
    return math.ceil(plan.needed_minutes)


def _without_verdict(
    dataset: Dataset, signs: Signs, plan: Plan | None, sentence: str, next_steps: tuple[str, ...]
) -> CheckReport:
    """What a check says that ended before it trained."""
    return CheckReport(
        dataset=_name_of(dataset),
        dataset_fingerprint=dataset.fingerprint,
        sentence=sentence,
        next_steps=next_steps,
        split=dataset.split_sentence,
        ndcg_at_10={},
        signs=signs,
        verdict=None,
        plan=plan,
        audits=(),
        warnings=(),
    )


def _name_of(dataset: Dataset) -> str:
    return str(dataset.manifest.get("name") or dataset.directory.resolve().name)


def _planned(dataset: Dataset, request: CheckRequest, original: Arm, tell: Tell) -> Plan:
    asked = {
        "dataset": dataset.fingerprint,
        "target": request.target,
        "recommender": request.recommender,
        "minutes": request.minutes,
        "seeds": request.seeds,
        "device": request.device.type,
    }
    plan = kept_plan(request.folder, asked)
    if plan is None:
        tell("timing a few steps")
        times = time_steps(
            dataset, request.target, original, request.recommender, device=request.device, seed=FIRST_SEED
        )
        plan = make_plan(times, request.minutes, seeds=request.seeds)
        keep_plan(request.folder, plan, asked)
    tell(
        f"forecast: about {plan.usual_minutes:g} of {request.minutes:g} minutes, {plan.most_minutes:g} at most "
        f"({_epochs(plan)})"
    )
    return plan


def _epochs(plan: Plan) -> str:
    return (
        f"at most {plan.base_epochs} epochs of the base, {plan.expert_epochs} of the expert, {plan.recommender_epochs} "
        f"of the recommender with {plan.seeds} {'seed' if plan.seeds == 1 else 'seeds'}"
    )


def _trained(dataset: Dataset, request: CheckRequest, config: PipelineConfig, progress: Progress | None) -> Bundle:
    """The bundle in the folder where it is of this dataset and plan, else a new one."""
    folder = request.folder / "bundle"
    there = find_trained(folder, dataset, config, device=request.device)
    if there is not None:
        return there
    return train_bundle(
        dataset,
        folder,
        config,
        device=request.device,
        # A run of another plan or dataset is no part of this one
        run_directory=request.folder / f"run-{_short_hash(dataset, config)}",
        progress=progress,
    )


def _short_hash(dataset: Dataset, config: PipelineConfig) -> str:
    content = json.dumps([dataset.fingerprint, settings_of(config)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def _composite(dataset: Dataset, request: CheckRequest, bundle: Bundle, stage: Stage) -> Composite:
    folder = request.folder / "composite"
    ensure_composite(
        dataset,
        bundle,
        target=request.target,
        rule=DEFAULT_RULE,
        dial=DIAL,
        out=folder,
        on_users=lambda done, total: stage(f"regenerating {total:,} sequences", done / total),
    )
    return load_composite(folder, dataset, request.target)


def _grid(
    dataset: Dataset, request: CheckRequest, plan: Plan, bundle: Bundle, composite: Composite, rows: RankedRows
) -> Grid:
    """Arms whose test items are validation and test items both, and the expert beside two of them."""
    domain = dataset.vocabulary.token_range(request.target)
    mixed = rows.queries(build_arm(dataset, request.target, "mixed", None))
    histories = keep_domain(regenerate_histories(bundle, DEFAULT_RULE, DIAL, mixed, request.target), domain)
    arms: dict[ArmName, Arm] = {}
    for name in ARMS:
        arm = build_arm(dataset, request.target, name, composite)
        arms[name] = dataclasses.replace(arm, test=rows.queries(arm))
    served = dataclasses.replace(arms["regenerated"].test, histories=histories)
    arms["regenerated"] = dataclasses.replace(arms["regenerated"], served=served)
    table_XD = table_of(bundle.expert_parts(request.target), domain)
    first = np.arange(len(rows.validation))
    advice: dict[ArmName, Advice] = {}
    for name, queries in (("original", arms["original"].test), ("regenerated", served)):
        both = advised(bundle, request.target, queries, mixed)
        chosen_by = advised(bundle, request.target, queries.at(first), mixed.at(first))
        advice[name] = Advice(bundle.version, table_XD, chosen_by, both)
    return Grid(
        tuple(arms.values()), plan.evaluation(request.recommender), request.folder / "cells", request.device, advice
    )


def _run_cells(
    grid: Grid, request: CheckRequest, plan: Plan, tell: Tell, progress: Progress | None
) -> dict[ArmName, list[Cell]]:
    is_counted = request.recommender in COUNTED
    cells: dict[ArmName, list[Cell]] = {}
    for number in range(1 if is_counted else plan.seeds):
        for arm in grid.arms:
            tell(f"{request.recommender} on rows {arm.name}, seed {number + 1} of {1 if is_counted else plan.seeds}")
            cells.setdefault(arm.name, []).append(grid.run(request.recommender, arm, FIRST_SEED + number, progress))
    return cells


def _lines_of(cells: Mapping[ArmName, list[Cell]], rows: RankedRows) -> dict[str, LineValues]:
    """Every line that the cells hold, by the names that reports use."""
    ranks: dict[str, tuple[str, list[Ranks]]] = {}
    for arm, group in cells.items():
        ranks[arm] = arm, [cell.ranks for cell in group]
        served = [cell.served_ranks for cell in group if cell.served_ranks is not None]
        beside = [cell.advised.ranks for cell in group if cell.advised is not None]
        if served:
            ranks["served"] = arm, served
        if beside:
            ranks["served with expert" if served else "with expert"] = arm, beside
    return {
        line: rows.split(np.stack([_ndcg(np.asarray(one.unseen)) for one in per_seed]), arm)
        for line, (arm, per_seed) in ranks.items()
    }


def _own_lines(request: CheckRequest, exchange: Exchange, rows: RankedRows, tell: Tell) -> dict[str, LineValues]:
    """The lines of the team's own recommender; a list has no probabilities that the expert's could be added to."""
    if request.command is not None:
        scores = run_command(exchange, request.command, tell)
    else:
        assert request.scores is not None
        scores = read_scores(request.scores)
    lines: dict[str, LineValues] = {}
    for arm, table in scores.items():
        lines[arm] = rows.split(_ndcg(ranks_of_lists(table, exchange, served=False))[None], arm)
        if arm == "regenerated":
            lines["served"] = rows.split(_ndcg(ranks_of_lists(table, exchange, served=True))[None], arm)
    return lines


def _ndcg(ranks_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    values_N: npt.NDArray[np.float64] = ndcg_at_k(torch.from_numpy(ranks_N), 10).numpy().astype(np.float64)
    return values_N


def _cut_short(cells: Mapping[ArmName, list[Cell]]) -> tuple[str, ...]:
    names = [name for name, group in cells.items() if any(cell.is_cut_short for cell in group)]
    if not names:
        return ()
    return (f"Best at the last epoch it had, on rows {', '.join(names)}: not converged; give more --minutes.",)


def _joined(first: Queries, second: Queries) -> Queries:
    return Queries(
        np.concatenate([first.users, second.users]),
        _sequences(first.histories, second.histories),
        np.concatenate([first.targets, second.targets]),
        _sequences(first.seen, second.seen),
        np.concatenate([first.num_target_items, second.num_target_items]),
    )


def _sequences(first: Sequences, second: Sequences) -> Sequences:
    tokens = np.concatenate([first.token_ids, second.token_ids])
    return Sequences(tokens, np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]))
