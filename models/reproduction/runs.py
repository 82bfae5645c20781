"""
Train what a reproduction needs and evaluate it, resumable at every epoch.

    OUT/bundles/EXPERTS/                one bundle for each way that experts come to be; table 2 needs the adapted ones
    OUT/composites/EXPERTS-RULE/TARGET/ the composite of one of those bundles by one rule
    OUT/cells/                          every trained recommender; all reports share them
    OUT/reports/EXPERTS-RULE/*.json     the report of each evaluation, as ``taesar evaluate`` writes it

What lies there from an earlier run is read back where it was made of the same data by the same configuration.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from models.bundle import Bundle, load_bundle
from models.composite.folder import ensure_composite
from models.data.dataset import Dataset
from models.decoding.rules import Dial, Rule
from models.evaluation.arms import ArmName, build_arm
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.ranking import RankingName
from models.evaluation.scheduling import CellReport
from models.evaluation.search import search, with_point
from models.evaluation.study import HistoryName, Report, Study, run_study
from models.evaluation.trained import Trainings
from models.files import replace_file
from models.recommenders.registry import CONFIGURATIONS, MULTI_DOMAIN
from models.reproduction.paper_rows import OF_MIXED_ROWS, TABLE_3, Variant
from models.training.experts import Experts
from models.training.loop import RESUME_SUFFIX, Progress
from models.training.pipeline import PipelineConfig, find_trained, forget_run, train_bundle

# The paper replaces whatever its rule says; a guard that leaves rows alone would reproduce nothing.
DIAL: Dial = "all"
ADAPTED: Experts = "adapted"
BASE_FILE = f"base{RESUME_SUFFIX}"
_SEARCHED: tuple[ArmName, ...] = ("original", "mixed")


@dataclass(frozen=True)
class Reproduction:
    """
    What all evaluations of one reproduction share.

    Args:
        dataset: the prepared dataset.
        out: where everything is kept.
        command: how the run was started, for the reports.
        pipeline: of base and adapted experts; the ablations differ from it in their experts alone.
        config: of the recommenders; with ``tuned``, where the search for each target begins.
        tuned: search for every recommender's rate, batch and dropout on each target's validation items
            (``evaluation.search``): those of the target's rows on arm ``original``, models of mixed rows on ``mixed``,
            by as many trials. SASRec_m takes what SASRec got.
        seeds: of the recommenders; bundles have one.
        ranking: which candidates are ranked.
        recommenders: of the target's rows in table 2, of ``SINGLE_DOMAIN``, SASRec among them; those of mixed rows are
            always there.
        device: where to train.
        processes: how many recommenders train at once.
        progress: receiver of training reports.
        on_cell: called before and after every cell.
        on_stage: called with the name of a stage between trainings and the share of it that is done.
    """

    dataset: Dataset
    out: Path
    command: str
    pipeline: PipelineConfig
    config: EvaluationConfig
    seeds: tuple[int, ...]
    ranking: RankingName
    recommenders: tuple[str, ...]
    device: torch.device
    processes: int = 1
    tuned: bool = False
    progress: Progress | None = None
    on_cell: Callable[[CellReport], None] | None = None
    on_stage: Callable[[str, float], None] | None = None


def prepare_bundle(run: Reproduction, experts: Experts) -> Bundle:
    """
    The bundle whose experts come to be so; trained where it is not there.

    All ways have the same base: it is trained once, and the others take its finished run over.
    """
    folder = run.out / "bundles" / experts
    config = with_experts(run.pipeline, experts)
    there = find_trained(folder, run.dataset, config, device=run.device)
    if there is not None:
        return there
    own_run, base_run = (run.out / "bundles" / f"{name}.run" for name in (experts, ADAPTED))
    if experts != ADAPTED and (base_run / BASE_FILE).is_file() and not (own_run / BASE_FILE).exists():
        own_run.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(base_run / BASE_FILE, own_run / BASE_FILE)
    bundle = train_bundle(
        run.dataset,
        folder,
        config,
        device=run.device,
        run_directory=own_run,
        keep_run=experts == ADAPTED,
        progress=run.progress,
    )
    return load_bundle(bundle.directory, device=run.device)


def forget_runs(run: Reproduction) -> None:
    """
    Delete what only an interrupted training of bundles needs.

    The base's finished run stays until every way to make experts has taken it over: table 3 may be asked for later.
    """
    bundles = run.out / "bundles"
    own_run = bundles / f"{ADAPTED}.run"
    if all((bundles / variant.experts).is_dir() for variant in TABLE_3):
        forget_run(own_run)
    else:
        for path in own_run.glob(f"*{RESUME_SUFFIX}"):
            if path.name != BASE_FILE:
                path.unlink()


def with_experts(config: PipelineConfig, experts: Experts) -> PipelineConfig:
    """*config* with experts that come to be so; from scratch they learn as much as the base, by the base's schedule."""
    return dataclasses.replace(
        config, experts=experts, expert=config.base if experts == "from-scratch" else config.expert
    )


def evaluate_rows(run: Reproduction, bundle: Bundle, target: str, rule: Rule) -> Report:
    """Every row of table 2 for *target*: the recommenders, and what reads mixed histories beside them."""
    return _evaluate(
        run,
        bundle,
        Variant("", ADAPTED, rule),
        target,
        recommenders=tuple(dict.fromkeys((*run.recommenders, *OF_MIXED_ROWS))),
        arms=("original", "duplicated", "regenerated", "mixed"),
        histories=("target", "regenerated"),
    )


def evaluate_variant(run: Reproduction, bundle: Bundle, target: str, variant: Variant) -> Report:
    """SASRec after one row of table 3; of the rule of table 2 by the same cells."""
    return _evaluate(
        run,
        bundle,
        variant,
        target,
        recommenders=("sasrec",),
        arms=("original", "regenerated"),
        histories=("target", "regenerated"),
    )


def describe_composite_of(run: Reproduction, bundle: Bundle, target: str, rule: Rule) -> Report:
    """Figures 4 and 5 for *target*, with a recommender that is counted, not trained."""
    return _evaluate(
        run,
        bundle,
        Variant("", ADAPTED, rule),
        target,
        recommenders=("popularity",),
        arms=("original", "duplicated", "regenerated"),
        histories=("target",),
    )


def _evaluate(
    run: Reproduction,
    bundle: Bundle,
    variant: Variant,
    target: str,
    *,
    recommenders: tuple[str, ...],
    arms: tuple[ArmName, ...],
    histories: tuple[HistoryName, ...],
) -> Report:
    name = f"{variant.experts}-{variant.rule}"
    composite = run.out / "composites" / name / target
    stage = f"regenerating for {target} by {name}"
    ensure_composite(
        run.dataset,
        bundle,
        target=target,
        rule=variant.rule,
        dial=DIAL,
        out=composite,
        on_users=lambda done, total: None if run.on_stage is None else run.on_stage(stage, done / total),
    )
    config = _tuned(run, target, recommenders) if run.tuned else run.config
    study = Study(
        target=target,
        recommenders=recommenders,
        arms=arms,
        seeds=run.seeds,
        composite=composite,
        histories=histories,
        ranking=run.ranking,
        config=config,
        cells=run.out / "cells",
        device=run.device,
        processes=run.processes,
        on_mixed=tuple(OF_MIXED_ROWS),
    )
    report = run_study(
        run.dataset, study, command=run.command, bundle=bundle, progress=run.progress, on_cell=run.on_cell
    )
    reports = run.out / "reports" / name
    reports.mkdir(parents=True, exist_ok=True)
    with replace_file(reports / f"{target}-{'-'.join(recommenders)}.json") as partial:
        partial.write_text(json.dumps(dataclasses.asdict(report), indent=1), encoding="utf-8")
    return report


def _tuned(run: Reproduction, target: str, recommenders: tuple[str, ...]) -> EvaluationConfig:
    """The configuration that validation items of *target* choose; trials that were made before are read back."""
    arms = {name: build_arm(run.dataset, target, name, None) for name in _SEARCHED}
    trainings = Trainings(arms["original"], run.config, run.out / "cells", run.device)
    config = run.config
    for name in recommenders:
        if name in CONFIGURATIONS:
            arm = arms["mixed" if name in MULTI_DOMAIN else "original"]
            found = search(name, trainings, seed=run.seeds[0], arm=arm, progress=run.progress)
            config = with_point(config, name, found.best.point)
    return config
