"""``taesar reproduce``: the paper's tables and figures, made again on a data set of one's own."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.console import console, say, set_result
from app.cli.evaluate import FIRST_SEED, patience_in, print_cell
from app.cli.options import DeviceOption, JobsOption, choices
from models.decoding.rules import DEFAULT_RULE, Rule

if TYPE_CHECKING:
    from models.reproduction.runs import Reproduction

TABLES = ("1", "2", "3")
RECOMMENDERS = ("sasrec", "gru4rec", "gcegnn", "cl4srec")
FIGURES: Mapping[str, Literal[4, 5]] = {"4": 4, "5": 5}
SECONDS_BETWEEN_LINES = 10.0


def reproduce(
    dataset: Annotated[Path, typer.Argument(help="Folder that `taesar prepare` wrote.")],
    out: Annotated[
        Path,
        typer.Option(
            resolve_path=True, help="Folder of tables and figures; also of the bundles and cells that they are made of."
        ),
    ],
    table: Annotated[
        str,
        typer.Option(
            help="Comma-separated, of: 1 (sizes), 2 (recommenders with and without Taesar, and rivals), 3 (ablations)."
        ),
    ] = "",
    figure: Annotated[
        str, typer.Option(help="Comma-separated, of: 4 (mapped items in the plane), 5 (rows before and after).")
    ] = "",
    targets: Annotated[
        str | None, typer.Option(help="Comma-separated domains.", show_default="every domain of the dataset")
    ] = None,
    recommenders: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated rows of table 2, of: {', '.join(RECOMMENDERS)}. SASRec and the models of mixed rows "
            "are always there."
        ),
    ] = ",".join(RECOMMENDERS),
    seeds: Annotated[int, typer.Option(min=1, help="Of each recommender; three show what chance does.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="The others follow it.")] = FIRST_SEED,
    rule: Annotated[
        Rule, typer.Option(help="Decoding rule of table 2 and the figures; table 3 has a row for each.")
    ] = DEFAULT_RULE,
    budget: Annotated[
        Literal["small", "full"],
        typer.Option(
            help="small: every recommender takes the setting of the config. full: five trials for each on every "
            "target's validation items first, ours and rivals alike (`taesar tune`)."
        ),
    ] = "small",
    ranking: Annotated[
        Literal["all", "unseen"],
        typer.Option(help="Rank among all of a target's items, as the paper, or among those the user has not had."),
    ] = "all",
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of the recommenders' hyper-parameters, as for `taesar evaluate`.", show_default="none"
        ),
    ] = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
) -> None:
    """
    Train what the paper's tables and figures need, and print them with the paper's own numbers beside.

    Everything that was finished is read back, so the same command, given again after a kill, goes on, and another table
    takes over what it shares with the first: bundles, composites, trained recommenders.
    """
    wanted_tables = choices("--table", table, TABLES) if table else ()
    wanted_figures = choices("--figure", figure, FIGURES) if figure else ()
    rows = tuple(dict.fromkeys(("sasrec", *choices("--recommenders", recommenders, RECOMMENDERS))))
    if not wanted_tables and not wanted_figures:
        raise typer.BadParameter("name at least one --table or --figure")
    say(f"reading {dataset}")
    from app.cli.progress import TrainingProgress
    from models.composite.regenerated_rows import SHORTEST_ROW
    from models.data.dataset import load_dataset
    from models.evaluation.configuration import load_config, tuned_config
    from models.reproduction.documents import write_figure
    from models.reproduction.runs import Reproduction, forget_runs
    from models.training.devices import resolve_device
    from models.training.pipeline import PipelineConfig, enough_epochs

    prepared = load_dataset(dataset)
    domains = choices("--targets", targets, prepared.vocabulary.domains) if targets else prepared.vocabulary.domains
    evaluation = tuned_config() if config is None else load_config(config)
    trainable = int((prepared.train.lengths >= SHORTEST_ROW).sum())
    pipeline = PipelineConfig(base=enough_epochs(PipelineConfig().base, trainable))
    say(_cost(wanted_tables, rows, len(domains), seeds, searched=budget == "full"))
    patience_of_recommender = patience_in(evaluation)

    def patience_of(stage: str) -> int:
        training = pipeline.training_of(stage)
        return patience_of_recommender(stage) if training is None else training.patience

    with TrainingProgress(console, patience_of=patience_of) as progress:
        run = Reproduction(
            dataset=prepared,
            out=out,
            command=shlex.join(["taesar", *sys.argv[1:]]),
            pipeline=pipeline,
            config=evaluation,
            seeds=tuple(range(first_seed, first_seed + seeds)),
            ranking=ranking,
            recommenders=rows,
            device=resolve_device(device),
            processes=jobs,
            tuned=budget == "full",
            progress=progress,
            on_cell=print_cell,
            on_stage=_SeldomLines(),
        )
        written = [path for number in wanted_tables for path in _write_table(number, run, domains, rule)]
        written += [
            path for number in wanted_figures for path in write_figure(run, domains, rule, 4 if number == "4" else 5)
        ]
    forget_runs(run)
    for path in written:
        say(f"written: {path}")
    set_result(out=str(out), files=[str(path) for path in written])


def _write_table(number: str, run: Reproduction, targets: Sequence[str], rule: Rule) -> list[Path]:
    from models.reproduction.documents import write_table_1, write_table_2, write_table_3

    if number == "1":
        return write_table_1(run)
    return write_table_2(run, targets, rule) if number == "2" else write_table_3(run, targets)


class _SeldomLines:
    """A line when a stage begins, and every ten seconds how much of it is done."""

    def __init__(self) -> None:
        self.stage = ""
        self.said_at = 0.0

    def __call__(self, stage: str, share: float) -> None:
        now = time.monotonic()
        if stage != self.stage or now - self.said_at >= SECONDS_BETWEEN_LINES:
            self.stage, self.said_at = stage, now
            say(f"{stage}: {share:.0%}")


def _cost(tables: Sequence[str], rows: Sequence[str], num_targets: int, seeds: int, *, searched: bool) -> str:
    """What is to be trained where nothing is there yet."""
    from models.evaluation.search import MOST_TRIALS
    from models.reproduction.paper_rows import OF_MIXED_ROWS, TABLE_3

    bundles = max(1 if tables != ("1",) else 0, len({row.experts for row in TABLE_3}) if "3" in tables else 0)
    cells = joint = 0
    if "2" in tables:
        cells, joint = 3 * len(rows), len(OF_MIXED_ROWS)
    if "3" in tables:
        # The original rows, and the composite of our rule, are those of table 2.
        cells += len(TABLE_3) + 1 - (2 if "2" in tables else 0)
    tuned = len({*rows, *OF_MIXED_ROWS}) if "2" in tables else int("3" in tables)
    trials = f", and up to {MOST_TRIALS * tuned * num_targets} trials before them" if searched and tuned else ""
    total = (cells * num_targets + joint) * seeds
    return (
        f"to train, unless it is there: {bundles} bundles, {total} recommenders ({cells} for each of the targets and "
        f"seeds, {joint} of mixed rows for each seed){trials}; each ends when validation gains no more"
    )
