"""``taesar train``: the base decoder and an expert per domain, from a prepared dataset to a bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.console import console, say, set_result
from app.cli.options import DeviceOption, override

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.evaluation.regeneration_trial import RegenerationTrial
    from models.training.pipeline import PipelineConfig


def train(
    dataset: Annotated[Path, typer.Argument(help="Folder that `taesar prepare` wrote.")],
    out: Annotated[
        Path, typer.Option(resolve_path=True, help="Bundle folder to write; one that holds a bundle needs --replace.")
    ],
    device: DeviceOption = "auto",
    recipe: Annotated[
        Literal["tuned", "released"],
        typer.Option(
            help="Where the options below have their defaults from: what validation chose, or the released code's "
            "--epochs 300 --expert-epochs 20 --learning-rate 0.0003 --expert-learning-rate 0.0003 --batch-size 128 "
            "--dropout 0.2 --schedule constant --own-rows 0.",
        ),
    ] = "tuned",
    seed: Annotated[
        int | None,
        typer.Option(
            help="Of weights, shuffling and dropout; any number, fixed so that a repetition is equal.",
            show_default="2025",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Most epochs of the base; more where 100 make fewer than 3,000 steps. It stops when it has converged.",
            show_default="100",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Epochs without a better NDCG@10, 150 steps at least, after which the base's rate falls (--schedule "
            "plateau) or its training ends.",
            show_default="2",
        ),
    ] = None,
    experts: Annotated[
        Literal["adapted", "from-scratch", "single-domain"],
        typer.Option(
            help="Adapt the base by domain-specific prediction; or, as ablations, train experts by it from scratch, or "
            "adapt the base on single-domain sequences by next-item prediction.",
        ),
    ] = "adapted",
    joint: Annotated[
        bool,
        typer.Option(
            "--joint/--no-joint",
            help="Where a domain has 1,000 validation items, train one expert for all domains at once, too; such a "
            "domain adds its log-probabilities to the adapted one's if that ranks them better by a standard error. "
            "Nearly as long again. Never with --recipe released, --sampled-softmax or other --experts.",
            show_default="--joint",
        ),
    ] = True,
    own_rows: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Of the experts' batches, the share without other domains' items: an expert reads a history with and "
            "without them, and learns both.",
            show_default="0.5",
        ),
    ] = None,
    expert_epochs: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Most epochs of each expert; from scratch as many as the base.",
            show_default="100",
        ),
    ] = None,
    expert_patience: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The same patience, for an expert; from scratch the base's.",
            show_default="2",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Of Adam. Twice as much learned nothing on some data for the first epochs, with larger batches.",
            show_default="0.001",
        ),
    ] = None,
    expert_learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="The same for the experts, which start from the base's weights; from scratch the base's.",
            show_default="half of it",
        ),
    ] = None,
    schedule: Annotated[
        Literal["constant", "linear", "plateau"] | None,
        typer.Option(
            help="plateau: the learning rate falls to a third from the best weights whenever patience runs out, and "
            "training ends at the third time, so it takes as long as the data ask. linear: it climbs over the first "
            "5 % of the epochs and falls to 0 at their end.",
            show_default="plateau",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Sequences per step: small, as what the base needs is steps.", show_default="32"),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Size of embeddings, hidden states and feed-forward layers, as in the released code.",
            show_default="128",
        ),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Decoder blocks, as in the released code.", show_default="2")
    ] = None,
    heads: Annotated[
        int | None,
        typer.Option(min=1, help="Attention heads, as in the released code; must divide the width.", show_default="2"),
    ] = None,
    dropout: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=0.95,
            help="Of embeddings and sublayers: with 0.2 the base overfitted within a few epochs at this rate.",
            show_default="0.5",
        ),
    ] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        typer.Option(
            help="Of the products in training; auto is bfloat16 on CUDA and float32 on the CPU, where few processors "
            "multiply bfloat16 natively: those that do train about twice as fast with it, others many times as slowly.",
            show_default="auto",
        ),
    ] = None,
    sampled_softmax: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Estimate every softmax from so many items, drawn anew for each step, for vocabularies of a million "
            "and more; without it each softmax is over all items.",
            show_default="all items",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Go on from this bundle, trained on a dataset that DATASET extends, for a few epochs. "
            "Its size and what its trials found are kept.",
            show_default="none",
        ),
    ] = None,
    trial: Annotated[
        bool | None,
        typer.Option(
            "--trial/--no-trial",
            help="Afterwards try on validation, for every target, whether regenerated rows and histories help a "
            "SASRec; what does not is left undone by this bundle. Without, everything is replaced. Trains two "
            "SASRecs a target: one to two times as long again.",
            show_default="--trial; --no-trial with --recipe released or --init",
        ),
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep the trial's recommenders in, such as the --cells of `taesar evaluate`: what was "
            "trained there is read back, and the other way round.",
            show_default="none is kept",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget a run that was interrupted; start anew.")] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="For production: after that, train all once more by the same schedule, to the epochs that validation "
            "chose, on every interaction, held-out ones included. `taesar evaluate` refuses such a bundle.",
        ),
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is already there.")] = False,
    name: Annotated[
        str | None,
        typer.Option(help="What people call the bundle; GET /models shows it.", show_default="the dataset's name"),
    ] = None,
) -> None:
    """
    Train the base and one expert per domain; write them as a bundle, with what validation chose for each target.

    The state after every epoch lies in OUT.run: the same command, given again after a kill, goes on from there and
    ends with the same weights. While it runs the sequences take 4 bytes an interaction of OUT's disk. Under
    `torchrun --nproc-per-node N --no-python` N GPUs train together.
    """
    say(f"reading {dataset}")
    from app.cli.counted_progress import CountedProgress
    from app.cli.progress import TrainingProgress
    from models.bundle import check_destination, load_bundle
    from models.composite.regenerated_rows import SHORTEST_ROW
    from models.data.dataset import describe_dataset, read_users
    from models.evaluation.configuration import tuned_config, with_precision
    from models.evaluation.regeneration_trial import try_targets, with_guards
    from models.training import distributed
    from models.training.devices import resolve_device
    from models.training.pipeline import (
        JOINT_TRAINING,
        REFRESH_BASE_EPOCHS,
        REFRESH_EXPERT_EPOCHS,
        RELEASED,
        NetworkConfig,
        PipelineConfig,
        enough_epochs,
        forecast_of,
        forget_run,
        refreshed,
        train_bundle,
    )
    from models.training.training_data import StoredData

    defaults = RELEASED if recipe == "released" else PipelineConfig()
    earlier = None if init is None else load_bundle(init)
    size = defaults.network if earlier is None else NetworkConfig.of(earlier.config)
    network = override(size, width=width, inner_width=width, num_layers=layers, num_heads=heads, dropout=dropout)
    if network.width % network.num_heads:
        raise typer.BadParameter(f"--width {network.width} is not a multiple of --heads {network.num_heads}")
    check_destination(out, replace=replace)
    described = describe_dataset(dataset)
    out.parent.mkdir(parents=True, exist_ok=True)
    with CountedProgress(console) as reading:
        on_users = partial(reading, "reading sequences")
        prepared = StoredData.of(described, out.parent, on_users)
    if earlier is not None:
        if experts != "adapted" or recipe != "tuned":
            raise typer.BadParameter("--init goes on by --recipe tuned and --experts adapted")
        defaults = dataclasses.replace(
            defaults,
            base=refreshed(defaults.base, REFRESH_BASE_EPOCHS),
            expert=refreshed(defaults.expert, REFRESH_EXPERT_EPOCHS),
            joint=refreshed(JOINT_TRAINING, REFRESH_EXPERT_EPOCHS),
        )
    both = {"seed": seed, "batch_size": batch_size, "precision": precision, "schedule": schedule}
    base = override(defaults.base, max_epochs=epochs, patience=patience, learning_rate=learning_rate, **both)
    if epochs is None and recipe == "tuned" and earlier is None:
        base = enough_epochs(base, int((prepared.train.lengths >= SHORTEST_ROW).sum()))
    if experts == "from-scratch":
        # It learns as much as the base does; the few epochs of the others would end before it has.
        expert = base
    else:
        expert = override(defaults.expert, **both)
        expert = dataclasses.replace(
            expert, learning_rate=base.learning_rate * expert.learning_rate / defaults.base.learning_rate
        )
    expert = override(expert, max_epochs=expert_epochs, patience=expert_patience, learning_rate=expert_learning_rate)
    at_once = None
    if joint and defaults.joint is not None:
        at_once = override(defaults.joint, max_epochs=epochs, patience=patience, **both)
    config = PipelineConfig(
        network=network,
        base=base,
        expert=expert,
        experts=experts,
        sampled_softmax=sampled_softmax,
        refit=refit,
        two_readings=defaults.two_readings,
        own_rows=defaults.own_rows if own_rows is None else own_rows,
        joint=at_once,
    )
    wants_trial = recipe == "tuned" and earlier is None if trial is None else trial
    tried: tuple[RegenerationTrial, ...] = ()
    run_directory = out.parent / f"{out.name}.run"
    place = resolve_device(device)
    with distributed.join_processes(place):
        console.quiet = console.quiet or not distributed.is_main()
        say(f"{forecast_of(prepared, config)}; how long it takes, once a few steps were timed")
        if fresh and distributed.is_main():
            forget_run(run_directory)
        distributed.wait_for_all()
        if run_directory.exists():
            say(f"going on with the run in {run_directory}")
        tries = wants_trial and distributed.num_processes() == 1
        # A trial's recommenders are no stage of the bundle's
        with TrainingProgress(
            console, patience_of=lambda stage: (config.training_of(stage) or config.expert).patience
        ) as progress:

            def train_all(config: PipelineConfig) -> Bundle:
                return train_bundle(
                    prepared,
                    out,
                    config,
                    device=place,
                    run_directory=run_directory,
                    keep_run=tries,
                    progress=progress,
                    name=name,
                    init=earlier,
                )

            # A trial is of networks that have not seen what it measures by, so it comes before a refit.
            bundle = train_all(dataclasses.replace(config, refit=refit and not tries))
            if tries:
                tried = try_targets(
                    read_users(described),
                    bundle,
                    config=with_precision(tuned_config(), config.base.precision),
                    device=place,
                    run_directory=run_directory,
                    recommenders=cells,
                    seed=config.base.seed,
                    progress=progress,
                )
                bundle = with_guards(train_all(config) if refit else bundle, tried)
                forget_run(run_directory)
    if wants_trial and not tries:
        say("what regeneration gives was not tried: that takes one process")
    for one in tried:
        say(one.guard.finding)
        if one.expert_is_behind:
            say(_behind(one))
    say(f"bundle {bundle.version} written to {out}")
    for stage in _cut_short(bundle.provenance):
        say(f"{stage} was best at the last epoch that it was given: not converged, give it more")
    for line in _parts(bundle):
        say(line)
    if experts != "from-scratch":
        for domain in _not_adapted(bundle.provenance):
            say(
                f"expert {domain} is the base itself: no epoch of adapting ranked its validation items better; rules "
                "that contrast the two find no difference"
            )
    stages = {"base": bundle.provenance["base"], **bundle.provenance["experts"]}
    metrics = {stage: summary["best_validation_ndcg_at_10"] for stage, summary in stages.items()}
    set_result(
        out=str(out),
        version=bundle.version,
        name=bundle.provenance["name"],
        refit=refit,
        best_validation_ndcg_at_10=metrics,
        seconds=bundle.provenance["seconds"],
    )


def _behind(trial: RegenerationTrial) -> str:
    return (
        f"The expert of {trial.target} is behind a SASRec that knows nothing of the other domains: NDCG@10 "
        f"{trial.expert_ndcg_at_10:.4f} and {trial.original.ndcg_at_10:.4f}."
    )


def _parts(bundle: Bundle) -> list[str]:
    """Of every domain that could read the joint expert a sentence on whether it does."""
    tried = bundle.provenance.get("joint", {}).get("tried", {})
    return [
        f"expert {domain} reads {'both decoders' if bundle.tuning(domain).joint else 'the adapted decoder alone'}: "
        f"validation NDCG@10 {one['both']:.4f} together, {one['adapted']:.4f} adapted, {one['joint']:.4f} joint; a "
        f"standard error is {one['standard_error']:.4f}"
        for domain, one in tried.items()
    ]


def _cut_short(provenance: Mapping[str, Any]) -> list[str]:
    """The stages whose best epoch is the last one trained."""
    stages = {"the base": provenance["base"]}
    stages |= {f"expert {domain}": summary for domain, summary in provenance["experts"].items()}
    if "joint" in provenance:
        stages["the joint expert"] = provenance["joint"]
    return [name for name, one in stages.items() if 0 < one["best_epoch"] == one["epochs"][-1]["epoch"]]


def _not_adapted(provenance: Mapping[str, Any]) -> list[str]:
    """The domains whose best epoch is epoch 0, the weights that adapting started from."""
    return [domain for domain, summary in provenance["experts"].items() if summary["best_epoch"] == 0]
