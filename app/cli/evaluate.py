"""``taesar evaluate``: what regenerated data does to a recommender, with intervals and a leak audit."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.console import console, say, set_result
from app.cli.options import DialOption, JobsOption, choices
from models.decoding.rules import DEFAULT_DIAL, DEFAULT_RULE, Dial, Rule
from models.recommenders.registry import MULTI_DOMAIN, RECOMMENDERS

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.data.dataset import Dataset
    from models.evaluation.budgets import EvaluationConfig
    from models.evaluation.scheduling import CellReport

ARMS = ("original", "duplicated", "regenerated", "mixed")
HISTORIES = ("target", "regenerated")
FIRST_SEED = 2025


def evaluate(
    dataset: Annotated[Path, typer.Argument(help="Folder that `taesar prepare` wrote.")],
    target: Annotated[str, typer.Option(help="Domain whose items are ranked.")],
    out: Annotated[Path, typer.Option(resolve_path=True, help="Folder of report.json, report.md and report.html.")],
    recommender: Annotated[
        str,
        typer.Option(help=f"Comma-separated, of: {', '.join(RECOMMENDERS)}; {', '.join(MULTI_DOMAIN)} need arm mixed."),
    ] = "sasrec,popularity,markov",
    arms: Annotated[
        str, typer.Option(help=f"Comma-separated, of: {', '.join(ARMS)}; original is always run.")
    ] = "original,duplicated,regenerated",
    seeds: Annotated[int, typer.Option(min=1, help="How many; three show what chance does.")] = 3,
    first_seed: Annotated[
        int, typer.Option(min=0, help="The others follow it; fixed so that a repetition is equal.")
    ] = FIRST_SEED,
    composite: Annotated[
        Path | None,
        typer.Option(
            help="Folder that `taesar regenerate` wrote for TARGET; without it --bundle regenerates. Arms duplicated "
            "and regenerated need one of the two.",
            show_default="none",
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Bundle to regenerate with where --composite is not given. With it the report has the base decoder "
            "and the target expert on mixed histories, and the mapping's plots; --history regenerated needs it.",
            show_default="none",
        ),
    ] = None,
    history: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated, of: {', '.join(HISTORIES)}. regenerated: test histories go through the bundle "
            "first, as a live user's would; needs arm regenerated and --bundle."
        ),
    ] = "target",
    ranking: Annotated[
        Literal["all", "unseen"],
        typer.Option(help="Rank among all of TARGET's items, or among those the user has not had. Cells hold both."),
    ] = "all",
    rule: Annotated[
        Rule,
        typer.Option(
            "--rule", "--recipe", help="Decoding rule of --bundle; that of --composite is the one it was made with."
        ),
    ] = DEFAULT_RULE,
    dial: DialOption = DEFAULT_DIAL,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of hyper-parameters, such as `taesar tune` writes; those it leaves out are as validation "
            "chose them on the first tables, with schedules that end by themselves (examples/tuned.toml).",
            show_default="none",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Most epochs of every recommender, in place of the config's. A row that was best at its last epoch "
            "goes on from there when it is given more.",
            show_default="those of the config",
        ),
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(
            help="Folder of finished cells; share it to reuse them in other reports.", show_default="OUT/cells"
        ),
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train; auto takes CUDA when there is one.")
    ] = "auto",
    jobs: JobsOption = 1,
) -> None:
    """
    Train recommenders on original, duplicated and regenerated rows and compare their rankings of held-out items.

    Every (recommender, arm, seed) is a cell, kept when it is finished: the same command, given again, reads finished
    cells back, goes on with an interrupted one from its last epoch, and computes what changed.
    """
    say(f"reading {dataset}")
    from app.cli.progress import TrainingProgress
    from models.bundle import load_bundle
    from models.data.dataset import load_dataset
    from models.evaluation.configuration import load_config, tuned_config, with_epochs
    from models.evaluation.study import Study, run_study
    from models.report.pages import write_report
    from models.training.devices import resolve_device

    names = choices("--recommender", recommender, tuple(RECOMMENDERS))
    arm_names = choices("--arms", arms, ARMS)
    histories = choices("--history", history, HISTORIES)
    evaluation = tuned_config() if config is None else load_config(config)
    if epochs is not None:
        evaluation = with_epochs(evaluation, epochs)
    place = resolve_device(device)
    prepared = load_dataset(dataset)
    loaded = None if bundle is None else load_bundle(bundle, device=str(place))
    if composite is None and loaded is not None:
        composite = _regenerated(prepared, loaded, target, rule, dial, out)
    study = Study(
        target=target,
        recommenders=names,
        arms=arm_names,  # type: ignore[arg-type]  # checked against ARMS above
        seeds=tuple(range(first_seed, first_seed + seeds)),
        composite=composite,
        histories=histories,  # type: ignore[arg-type]  # checked against HISTORIES above
        ranking=ranking,
        config=evaluation,
        cells=out / "cells" if cells is None else cells,
        device=place,
        processes=jobs,
    )
    with TrainingProgress(console, patience_of=patience_in(evaluation)) as progress:
        report = run_study(
            prepared,
            study,
            command=shlex.join(["taesar", *sys.argv[1:]]),
            bundle=loaded,
            progress=progress,
            on_cell=print_cell,
        )
    write_report(report, out)
    say(f"report written to {out / 'report.html'}, report.md and report.json")
    set_result(out=str(out), report=str(out / "report.json"))


def _regenerated(dataset: Dataset, bundle: Bundle, target: str, rule: Rule, dial: Dial, out: Path) -> Path:
    """The composite of *bundle* in *out*, made unless it is already there."""
    from app.cli.progress import StageProgress
    from models.composite.folder import ensure_composite

    folder = out / f"composite-{rule}"
    with StageProgress(console) as progress:
        ensure_composite(
            dataset,
            bundle,
            target=target,
            rule=rule,
            dial=dial,
            out=folder,
            on_users=lambda done, total: progress(f"regenerating {total:,} sequences", done / total),
        )
    return folder


def patience_in(config: EvaluationConfig) -> Callable[[str], int]:
    """The patience of a stage by its name: a recommender's, with a cell's after a comma where several train at once."""
    return lambda stage: config.training_of(stage.partition(",")[0]).patience


def print_cell(report: CellReport) -> None:
    """A line when a cell begins, and one when it is there."""
    name = f"cell {report.number}/{report.total}: {report.recommender}, {report.arm}, seed {report.seed}"
    if report.cell is None:
        say(name)
    elif report.reused:
        say(f"{name}: read back")
    else:
        validation = report.cell.validation_ndcg_at_10
        metric = (
            "" if validation is None else f", validation NDCG@10 {validation:.4f} at epoch {report.cell.best_epoch}"
        )
        if report.cell.is_cut_short:
            more = 2 * report.cell.epochs
            metric += f", the last: not converged; the same command with --epochs {more} goes on from there"
        say(f"{name}: done in {report.cell.seconds:.1f} s{metric}")
