"""``taesar tune``: learning rate, batch size and dropout of recommenders, chosen on validation items."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.console import console, say, set_result
from app.cli.options import choices
from models.recommenders.registry import RECOMMENDERS

if TYPE_CHECKING:
    from models.evaluation.search import SearchTrial

TUNABLE = tuple(name for name, entry in RECOMMENDERS.items() if entry.kind == "trained")


def tune(
    dataset: Annotated[Path, typer.Argument(help="Folder that `taesar prepare` wrote.")],
    target: Annotated[str, typer.Option(help="Domain whose items are ranked.")],
    out: Annotated[Path, typer.Option(resolve_path=True, help="TOML file to write, for `taesar evaluate --config`.")],
    recommender: Annotated[str, typer.Option(help=f"Comma-separated, of: {', '.join(TUNABLE)}.")] = "sasrec",
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file to start from, as of `taesar evaluate`.", show_default="examples/tuned.toml"),
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(
            help="Folder of what is trained; share it with `taesar evaluate --cells`, which then trains the chosen one "
            "no second time.",
            show_default="OUT.cells",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and shuffles.")] = 2025,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train; auto takes CUDA when there is one.")
    ] = "auto",
) -> None:
    """
    Search for the learning rate, batch size and dropout with which recommenders of the original rows rank validation
    items best: five trainings each at most, and test items are not read.

    The same command, given again after a kill, goes on from there.
    """
    say(f"reading {dataset}")
    from app.cli.progress import TrainingProgress
    from models.data.dataset import load_dataset
    from models.evaluation.arms import build_arm
    from models.evaluation.configuration import load_config, tuned_config, write_config
    from models.evaluation.search import search
    from models.evaluation.trained import Trainings
    from models.training.devices import resolve_device

    names = choices("--recommender", recommender, TUNABLE)
    start = tuned_config() if config is None else load_config(config)
    original = build_arm(load_dataset(dataset), target, "original", None)
    folder = out.parent / f"{out.name}.cells" if cells is None else cells
    trainings = Trainings(original, start, folder, resolve_device(device))
    found = []
    with TrainingProgress(console, patience_of=lambda stage: start.training_of(stage).patience) as progress:
        for name in names:
            say(f"{name}:")
            found.append(search(name, trainings, seed=seed, progress=progress, on_trial=_print_trial))
    write_config(out, config, [one.as_tables() for one in found])
    best = {one.recommender: one.best.ndcg_at_10 for one in found}
    say(f"written to {out}")
    set_result(out=str(out), best_validation_ndcg_at_10=best)


def _print_trial(trial: SearchTrial) -> None:
    point = trial.point
    dropout = "" if point.dropout is None else f", dropout {point.dropout:g}"
    last = ", its last: not converged" if 0 < trial.best_epoch == trial.epochs else ""
    say(
        f"rate {point.learning_rate:g}, batches of {point.batch_size}{dropout}: validation NDCG@10 "
        f"{trial.ndcg_at_10:.4f} at epoch {trial.best_epoch}{last}"
    )
