"""``taesar check``: from raw interactions to one sentence, whether Taesar helps a recommender of one domain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.console import console, say, set_result
from app.cli.options import DeviceOption, override
from models.recommenders.registry import MULTI_DOMAIN, RECOMMENDERS

if TYPE_CHECKING:
    from models.data.dataset import Dataset

MANIFEST = "dataset.json"


def check(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Interactions as `taesar prepare` takes them, or one dataset folder that it wrote, for what "
            "needs options that are not here.",
        ),
    ],
    target: Annotated[str, typer.Option(help="Domain of the recommender that is to gain.")],
    out: Annotated[
        Path, typer.Option(resolve_path=True, help="Folder of the report and of all that a repetition goes on from.")
    ] = Path("check"),
    minutes: Annotated[
        float,
        typer.Option(min=0.1, help="To spend on training; steps are timed first, and the forecast is printed."),
    ] = 60.0,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings of the recommender on each kind of rows.", show_default="1 to 3, by time"),
    ] = None,
    recommender: Annotated[
        str,
        typer.Option(
            help="What is judged where no own one is given, of: "
            f"{', '.join(name for name in RECOMMENDERS if name not in MULTI_DOMAIN)}."
        ),
    ] = "sasrec",
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Judge your own recommender by its scores: a Parquet table of rows, query, item_id, score for the "
            "files in OUT/own, which a first check writes.",
            show_default="none",
        ),
    ] = None,
    recommender_command: Annotated[
        str | None,
        typer.Option(
            help="Judge your own recommender by running it, once for each kind of rows: './train.sh {train} {test} "
            "{out}' trains on the sequences of the first file and writes query, item_id, score for the second.",
            show_default="none",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="ROLE=NAME,...", help="As of `taesar prepare`.", show_default="the usual names"),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="As of `taesar prepare`.", show_default="none")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help="As of `taesar prepare`; may be repeated.")
    ] = None,
    overlap: Annotated[
        Literal["all", "any"],
        typer.Option(help="As of `taesar prepare`; any keeps those who train your recommender today."),
    ] = "any",
    split: Annotated[
        Literal["leave-one-out", "time"],
        typer.Option(help="As of `taesar prepare`; time asks what a shop asks, about the days to come."),
    ] = "leave-one-out",
    test_from: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="As of `taesar prepare`.", show_default="the last tenth of the interactions"),
    ] = None,
    device: DeviceOption = "auto",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Train although the cheap signs say that nothing can come of it.")
    ] = False,
) -> None:
    """
    Find out whether Taesar helps: prepare, train for so many minutes, compare, audit for leaks, say it in a sentence.

    Cheap signs come first and may end it within seconds. Stopped at any moment, the same command goes on from there.
    """
    if split != "time" and test_from:
        raise typer.BadParameter("--test-from is of --split time")
    names = [name for name in RECOMMENDERS if name not in MULTI_DOMAIN]
    if recommender not in names:
        raise typer.BadParameter(f"--recommender {recommender} is none of {', '.join(names)}")
    if scores is not None and recommender_command is not None:
        raise typer.BadParameter("--scores and --recommender-command are two ways to one end: give one")
    say(f"reading {', '.join(inputs)}")
    from app.cli.progress import StageProgress, TrainingProgress
    from models.check.checking import CheckRequest
    from models.check.checking import check as check_target
    from models.report.check_page import PAGE, outcome_of, write_check
    from models.training.devices import resolve_device

    preparation = {"overlap": overlap, "split": split, "test_from": test_from}
    dataset = _dataset(inputs, out, preparation, columns=columns, preset=preset, where=where)
    request = CheckRequest(
        target=target,
        recommender=recommender,
        minutes=minutes,
        seeds=seeds,
        folder=out,
        device=resolve_device(device),
        anyway=anyway,
        scores=scores,
        command=recommender_command,
    )
    stages = StageProgress(console)
    with TrainingProgress(console, patience_of=lambda _stage: sys.maxsize) as progress:
        report = check_target(dataset, request, tell=say, stage=stages, progress=progress)
    write_check(report, out)
    for line in (*report.warnings, report.sentence, *(f"  {step}" for step in report.next_steps)):
        say(line)
    say(f"report written to {out / PAGE}")
    set_result(
        out=str(out),
        report=str(out / PAGE),
        outcome=outcome_of(report),
        sentence=report.sentence,
        next_steps=list(report.next_steps),
        split=report.split,
    )


def _dataset(
    inputs: list[str],
    out: Path,
    preparation: dict[str, Any],
    *,
    columns: str | None,
    preset: str | None,
    where: list[str] | None,
) -> Dataset:
    """The dataset that is given, or the one that the interactions give."""
    from app.cli.prepare import print_preparation, print_preview
    from app.cli.progress import StageProgress
    from models.data.dataset import load_dataset
    from models.data.preparation import PreparationConfig, prepare
    from models.data.reading.layouts import Layout, parse_condition, with_columns
    from models.data.reading.layouts import preset as layout_of

    if len(inputs) == 1 and (Path(inputs[0]) / MANIFEST).is_file():
        return load_dataset(Path(inputs[0]))
    layout = layout_of(preset) if preset else Layout()
    layout = override(layout, where=tuple(map(parse_condition, where)) if where else None)
    config = PreparationConfig(layout=with_columns(layout, columns) if columns else layout, **preparation)
    folder = out / "dataset"
    with StageProgress(console) as progress:
        report = prepare(inputs, folder, config, overwrite=True, progress=progress, show=print_preview)
    print_preparation(report, folder)
    return load_dataset(folder)
