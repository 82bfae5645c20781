"""
One evaluation from end to end: a dataset, a target and a grid in, a report out.

    1. build the arms (``models.evaluation.arms``);
    2. run every cell that is not cached (``models.evaluation.cells``), baselines and counted recommenders first;
    3. state the results (``models.evaluation.summary``), audit for leaks (``models.evaluation.leak_audit``);
    4. describe rows and mapping (``models.evaluation.statistics``).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl
import torch
from torch import Tensor

from models.bundle import Bundle
from models.composite.assembly import MAPPING
from models.composite.folder import check_trained_on
from models.data.dataset import Dataset, Sequences
from models.errors import ConfigurationError, EmptyDatasetError
from models.evaluation.advice import Advice
from models.evaluation.arms import (
    COMPOSITE_ARMS,
    Arm,
    ArmName,
    Composite,
    Queries,
    build_arm,
    keep_domain,
    load_composite,
    with_served,
)
from models.evaluation.budgets import EvaluationConfig
from models.evaluation.cells import Cell, Grid, as_advised, as_served, runs_on, untrained_cell
from models.evaluation.leak_audit import LeakAudit, audit_leaks
from models.evaluation.ranking import RankingName
from models.evaluation.scheduling import CellReport, CellTask, run_cells
from models.evaluation.served import BASE_DECODER, TARGET_EXPERT, DecoderScorer, advised, regenerate_histories
from models.evaluation.statistics import (
    Correspondence,
    DomainReach,
    ProjectedItems,
    RowStatistics,
    describe_composite,
    describe_reach,
    find_top_mappings,
    judge_correspondence,
    project_items,
)
from models.evaluation.summary import Results, summarise
from models.network.expert_parts import ExpertPart, table_of
from models.recommenders.registry import CONFIGURATIONS, COUNTED, MULTI_DOMAIN
from models.training.loop import Progress

# Seed of bootstrap, samples and projections, so that the same cells give the same report.
ANALYSIS_SEED = 2025


HistoryName = Literal["target", "regenerated"]
HISTORY_NAMES: tuple[HistoryName, ...] = get_args(HistoryName)


@dataclass(frozen=True)
class Study:
    """
    What to evaluate.

    Args:
        target: domain whose items are ranked.
        recommenders: names of ``models.recommenders.registry``; multi-domain ones run on arm ``mixed`` alone.
        arms: arms to compare; ``original`` is always run, as it sets the budget of all but ``mixed``.
        seeds: one cell each for every trained recommender; counted ones need no seed.
        composite: folder of the composite dataset; needed by arms duplicated and regenerated.
        histories: "target" ranks after the target's items alone; "regenerated" ranks arm ``regenerated`` a second time
            after regenerated histories (line ``served``) and needs the bundle.
        ranking: "all" ranks among all of the target's items; "unseen" leaves out what the user had before. Cells keep
            both, so asking for the other one trains nothing.
        config: schedule and hyper-parameters.
        cells: folder of finished cells.
        device: where to train.
        processes: how many cells train at once.
        on_mixed: of the recommenders that can run on other arms as well, those that also run on arm ``mixed``; None for
            all of them.
    """

    target: str
    recommenders: tuple[str, ...]
    arms: tuple[ArmName, ...]
    seeds: tuple[int, ...]
    composite: Path | None
    histories: tuple[HistoryName, ...]
    ranking: RankingName
    config: EvaluationConfig
    cells: Path
    device: torch.device
    processes: int = 1
    on_mixed: tuple[str, ...] | None = None

    def runs(self, recommender: str, arm: ArmName) -> bool:
        """Whether the study has such a cell."""
        chosen = arm != "mixed" or self.on_mixed is None or recommender in self.on_mixed
        return runs_on(recommender, arm) and (chosen or recommender in MULTI_DOMAIN)


@dataclass(frozen=True)
class Provenance:
    """
    What a reader needs to repeat the evaluation.

    ``split`` says how items were held out; ``composite`` is the composite's own summary, if there is one.
    """

    command: str
    dataset: str
    dataset_fingerprint: str
    split: str
    target: str
    ranking: RankingName
    configuration: Mapping[str, Any]
    composite: Mapping[str, Any] | None
    cells_computed: int
    cells_reused: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """Everything that is reported about one target."""

    provenance: Provenance
    results: Results
    audits: tuple[LeakAudit, ...]
    statistics: tuple[RowStatistics, ...]
    correspondences: tuple[Correspondence, ...]
    projections: tuple[ProjectedItems, ...]
    reach: tuple[DomainReach, ...] = ()  # reports of earlier versions have none


def run_study(
    dataset: Dataset,
    study: Study,
    *,
    command: str,
    bundle: Bundle | None = None,
    progress: Progress | None = None,
    on_cell: Callable[[CellReport], None] | None = None,
) -> Report:
    """
    Run the grid and report it; calling again computes only the cells that changed or are missing.

    Args:
        dataset: the prepared dataset.
        study: what to run.
        command: how this run was started, for the report.
        bundle: what the composite was made with. With it the report has base decoder and target expert on mixed
            histories, regenerated histories if they are asked for, and figure 4.
        progress: receiver of training reports.
        on_cell: called before and after every cell.

    Raises:
        ConfigurationError: an arm needs a composite and there is none, a recommender has no arm to run on, or
            regenerated histories are asked for without arm ``regenerated`` or without a bundle, or the composite was
            made by another bundle.
        BundleMismatchError: the bundle was trained on another dataset or another split of it.
        DatasetFormatError: the composite belongs to another dataset or target.
        UnknownDomainError: no such target.
        EmptyDatasetError: no held-out item is of the target.
    """
    started = time.perf_counter()
    if bundle is not None:
        check_trained_on(bundle, dataset)
    composite = None if study.composite is None else load_composite(study.composite, dataset, study.target)
    if composite is not None and bundle is not None and bundle.version != composite.summary["bundle_version"]:
        raise ConfigurationError(
            f"{study.composite} was made by bundle {composite.summary['bundle_version']}, not by {bundle.version}"
        )
    wanted: tuple[ArmName, ...] = ("original", *(arm for arm in study.arms if arm != "original"))
    if composite is None and set(wanted) & set(COMPOSITE_ARMS):
        raise ConfigurationError(
            f"arms {', '.join(COMPOSITE_ARMS)} need --composite, or --bundle to make one; --arms original needs neither"
        )
    idle = [name for name in study.recommenders if not any(study.runs(name, arm) for arm in wanted)]
    if idle:
        raise ConfigurationError(f"{', '.join(idle)} can only train on mixed rows: add arm mixed")
    arms = tuple(build_arm(dataset, study.target, name, composite) for name in wanted)
    if not len(arms[0].test):
        raise EmptyDatasetError(
            f"nobody's held-out item is of {study.target}: there is nothing to rank; evaluate another target, or hold "
            "out by date (taesar prepare --split time)"
        )
    if "regenerated" in study.histories:
        arms = _with_served(dataset, study, arms, composite, bundle)
    advice = {} if bundle is None else _advice(dataset, study.target, arms, bundle, composite)
    grid = Grid(arms, study.config, study.cells, study.device, advice)
    tasks = _tasks(arms, study)
    cells, reused = run_cells(grid, tasks, processes=study.processes, progress=progress, on_cell=on_cell)
    computed = len(cells) - reused
    audits = () if composite is None else audit_leaks(dataset, study.target, composite)
    hits = sorted({user for audit in audits for user in audit.hit_users})
    trained = tuple(cells)
    cells += [as_served(cell) for cell in trained if cell.served_ranks is not None]
    cells += [as_advised(cell) for cell in trained if cell.advised is not None]
    cells += _decoder_cells(dataset, study, bundle)
    results = summarise(cells, arms[0].test, ranking=study.ranking, leak_hits=hits, seed=ANALYSIS_SEED)
    item_table_VD = None if bundle is None else bundle.base.item_embeddings_VD
    correspondences, projections = _mapping_views(dataset, study.target, composite, item_table_VD)
    return Report(
        provenance=Provenance(
            command=command,
            dataset=dataset.directory.resolve().name,
            dataset_fingerprint=dataset.fingerprint,
            split=dataset.split_sentence,
            target=study.target,
            ranking=study.ranking,
            configuration=_configuration(study),
            composite=None if composite is None else dict(composite.summary),
            cells_computed=computed,
            cells_reused=reused,
            seconds=round(time.perf_counter() - started, 1),
        ),
        results=results,
        audits=audits,
        statistics=() if composite is None else describe_composite(dataset, study.target, composite),
        correspondences=correspondences,
        projections=projections,
        reach=describe_reach(dataset),
    )


def _configuration(study: Study) -> dict[str, Any]:
    """Seeds, and what each trained recommender of the study took."""
    trained = [name for name in study.recommenders if name in CONFIGURATIONS]
    return {
        "seeds": list(study.seeds),
        "training": {name: dataclasses.asdict(study.config.training_of(name)) for name in trained},
        "recommender": {name: dataclasses.asdict(study.config.config_of(name)) for name in trained},
    }


def _tasks(arms: tuple[Arm, ...], study: Study) -> list[CellTask]:
    return [
        CellTask(recommender, number, seed)
        for recommender in study.recommenders
        for number, arm in enumerate(arms)
        if study.runs(recommender, arm.name)
        for seed in (study.seeds[:1] if recommender in COUNTED else study.seeds)
    ]


def _with_served(
    dataset: Dataset, study: Study, arms: tuple[Arm, ...], composite: Composite | None, bundle: Bundle | None
) -> tuple[Arm, ...]:
    if composite is None or not any(arm.name == "regenerated" for arm in arms):
        raise ConfigurationError("regenerated histories are for recommenders of arm regenerated: add it")
    if bundle is None:
        raise ConfigurationError(
            f"regenerated histories need bundle {composite.summary['bundle_version']}, which made the composite"
        )
    mixed = build_arm(dataset, study.target, "mixed", None)
    histories = _served(bundle, composite, mixed.test, study.target)
    domain = dataset.vocabulary.token_range(study.target)
    return tuple(with_served(arm, histories, domain) if arm.name == "regenerated" else arm for arm in arms)


def _served(bundle: Bundle, composite: Composite, queries: Queries, target: str) -> Sequences:
    """Histories regenerated as the composite was; one made before there was a dial had everything replaced."""
    return regenerate_histories(
        bundle, composite.summary["rule"], composite.summary.get("dial", "all"), queries, target
    )


def _advice(
    dataset: Dataset, target: str, arms: tuple[Arm, ...], bundle: Bundle, composite: Composite | None
) -> dict[ArmName, Advice]:
    """The target's expert beside the recommenders of ``original`` and, where they are served, of ``regenerated``."""
    mixed = build_arm(dataset, target, "mixed", None)
    domain = dataset.vocabulary.token_range(target)
    table_XD = table_of(bundle.expert_parts(target), domain)
    advice: dict[ArmName, Advice] = {}
    for arm in arms:
        if arm.name == "original":
            validation, test = arm.validation, arm.test
        elif arm.served is not None and composite is not None:
            histories = keep_domain(_served(bundle, composite, mixed.validation, target), domain)
            validation, test = dataclasses.replace(arm.validation, histories=histories), arm.served
        else:
            continue
        advice[arm.name] = Advice(
            bundle.version,
            table_XD,
            advised(bundle, target, validation, mixed.validation),
            advised(bundle, target, test, mixed.test),
        )
    return advice


def _decoder_cells(dataset: Dataset, study: Study, bundle: Bundle | None) -> list[Cell]:
    """What the bundle's own decoders make of mixed histories; seconds each, so not kept."""
    if bundle is None:
        return []
    arm = build_arm(dataset, study.target, "mixed", None)
    scorers = {
        BASE_DECODER: DecoderScorer((ExpertPart(bundle.base),)),
        TARGET_EXPERT: DecoderScorer(bundle.expert_parts(study.target)),
    }
    return [
        untrained_cell(
            scorer,
            arm,
            study.device,
            key=f"{bundle.version} {name}",
            recommender=name,
            seed=study.seeds[0],
            started=time.perf_counter(),
        )
        for name, scorer in scorers.items()
    ]


def _mapping_views(
    dataset: Dataset, target: str, composite: Composite | None, item_table_VD: Tensor | None
) -> tuple[tuple[Correspondence, ...], tuple[ProjectedItems, ...]]:
    if composite is None or item_table_VD is None:
        return (), ()
    table_VD = item_table_VD.detach().cpu()
    mapping = pl.read_parquet(composite.directory / MAPPING)
    correspondences: list[Correspondence] = []
    projections: list[ProjectedItems] = []
    for source in dataset.vocabulary.domains:
        top = find_top_mappings(mapping, dataset.vocabulary, source, target)
        judged = judge_correspondence(top, table_VD, dataset.vocabulary, source, target, seed=ANALYSIS_SEED)
        if judged is None:
            continue
        correspondences.append(judged)
        projections += project_items(top, table_VD, dataset.vocabulary, source, target, seed=ANALYSIS_SEED)
    return tuple(correspondences), tuple(projections)
