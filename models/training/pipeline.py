"""Stage 1 as a whole: a prepared dataset in, a bundle out, resumable at every epoch."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.bundle import Bundle, check_destination, load_bundle, save_bundle
from models.data.dataset import DATASET_FACTS
from models.data.period import now_text
from models.errors import BundleError
from models.files import PARTIAL_SUFFIX
from models.network.decoder import Decoder, DecoderConfig
from models.training import distributed
from models.training.base import train_base
from models.training.continuation import Continuation
from models.training.expert_choice import ExpertChoice, choose_expert
from models.training.experts import Experts, train_expert
from models.training.joint import JOINT_STAGE, domains_with_rows, train_joint_expert
from models.training.loop import RESUME_SUFFIX, Progress, TrainingConfig, TrainingResult, settings_of
from models.training.objective import choose_held_out
from models.training.refit import REFIT_STAGE, RefitProgress
from models.training.training_data import TrainableData, undivided
from models.training.training_forecast import TrainingForecast
from models.tuning import Guard, TargetTuning

# Small steps (docs/experiments/better-bundle.md), as many as it takes: a number of epochs that was right for one
# table turned a gain into a loss on another (docs/experiments/two-readings.md).
BASE_TRAINING = TrainingConfig(learning_rate=1e-3, batch_size=32, max_epochs=100, patience=2, schedule="plateau")
# From the base's weights a gentler course.
EXPERT_TRAINING = TrainingConfig(learning_rate=5e-4, batch_size=32, max_epochs=100, patience=2, schedule="plateau")
# From nothing, as the base; the decay is what the scale of its logits goes with.
JOINT_TRAINING = dataclasses.replace(BASE_TRAINING, weight_decay=1.0)
# What a refresh takes: few epochs whose rate falls to 0, as the weights are nearly right; at half the rate they fell
# behind what a day brings (docs/experiments/ten-days-of-refreshes.md).
REFRESH_BASE_EPOCHS = 1
REFRESH_EXPERT_EPOCHS = 2
# The least number of steps that a small table may take, however few sequences make an epoch.
LEAST_STEPS = 3000


@dataclass(frozen=True)
class NetworkConfig:
    """Size and regularisation of base and experts; see ``DecoderConfig`` for each field."""

    width: int = 128
    inner_width: int = 128
    num_layers: int = 2
    num_heads: int = 2
    dropout: float = 0.5
    attention_dropout: float = 0.2

    @classmethod
    def of(cls, decoder: DecoderConfig) -> NetworkConfig:
        """The size of a decoder that there is."""
        return cls(**{one.name: getattr(decoder, one.name) for one in dataclasses.fields(cls)})

    def decoder_for(self, dataset: TrainableData) -> DecoderConfig:
        """A decoder of this size for the items of *dataset*."""
        return DecoderConfig(
            num_items=dataset.vocabulary.num_items,
            max_length=dataset.manifest["config"]["max_length"],
            **dataclasses.asdict(self),
        )


@dataclass(frozen=True)
class PipelineConfig:
    """
    How to train base and experts.

    Args:
        network: size and regularisation.
        base: schedule of the base.
        expert: schedule of each expert; one from scratch wants the base's.
        experts: how experts come to be; see ``models.training.experts``.
        sampled_softmax: estimate every softmax from so many items per step; None takes all of them.
        refit: train all once more, by the same schedule, to the epochs that validation chose, on everything.
        two_readings: choose on validation how far each expert reads its own domain's items alone
            (``models.training.own_shares``); without, experts have the mixed reading.
        own_rows: share of the experts' batches that hold the domain's own items alone.
        adapted_domains: whose experts are adapted; the others stay the base, for who asks for one target alone. None:
            all of them.
        joint: schedule of the joint expert, which stands beside adapted ones of two readings where a domain has many
            validation rows (``models.training.joint``); None: there is none. With a sampled softmax there is none
            either.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    base: TrainingConfig = BASE_TRAINING
    expert: TrainingConfig = EXPERT_TRAINING
    experts: Experts = "adapted"
    sampled_softmax: int | None = None
    refit: bool = False
    two_readings: bool = True
    own_rows: float = 0.5
    adapted_domains: tuple[str, ...] | None = None
    joint: TrainingConfig | None = JOINT_TRAINING

    def adapts(self, domain: str) -> bool:
        """Whether *domain* gets an expert of its own."""
        return self.adapted_domains is None or domain in self.adapted_domains

    def training_of(self, stage: str) -> TrainingConfig | None:
        """
        The schedule of a stage by the name that it reports under; None: no stage of a bundle's, or none of this one's.

        >>> config = PipelineConfig()
        >>> config.training_of("refit of base") is config.base, config.training_of("expert food") is config.expert
        (True, True)
        >>> config.training_of("sasrec") is None
        True
        """
        name = stage.removeprefix(REFIT_STAGE)
        if name.startswith("expert "):
            return self.expert
        return {"base": self.base, JOINT_STAGE: self.joint}.get(name)


@dataclass(frozen=True)
class Trained:
    """The networks of a bundle, and how each of them came to be; a joint expert perhaps to no use."""

    base: Decoder
    experts: tuple[Decoder, ...]
    base_result: TrainingResult
    expert_results: tuple[TrainingResult, ...]
    joint: tuple[Decoder, TrainingResult] | None


# As the released code trains, but for the experts' early stopping: it keeps the last of their 20 epochs.
RELEASED = PipelineConfig(
    network=NetworkConfig(dropout=0.2),
    base=TrainingConfig(),
    expert=TrainingConfig(max_epochs=20, patience=5),
    two_readings=False,
    own_rows=0.0,
    joint=None,
)


def refreshed(training: TrainingConfig, epochs: int) -> TrainingConfig:
    """
    *training* as a refresh takes it.

    >>> refreshed(BASE_TRAINING, 2).max_epochs, refreshed(BASE_TRAINING, 2).schedule
    (2, 'linear')
    """
    return dataclasses.replace(training, max_epochs=epochs, patience=max(1, epochs), schedule="linear")


def enough_epochs(training: TrainingConfig, num_sequences: int) -> TrainingConfig:
    """
    *training* with as many epochs as make ``LEAST_STEPS`` steps, if it has fewer.

    >>> enough_epochs(TrainingConfig(batch_size=32, max_epochs=14), num_sequences=1600).max_epochs
    60
    """
    steps = max(1, -(-num_sequences // training.batch_size))
    return dataclasses.replace(training, max_epochs=max(training.max_epochs, -(-LEAST_STEPS // steps)))


def judged_domains(dataset: TrainableData, config: PipelineConfig) -> tuple[str, ...]:
    """The domains that may take a joint expert: none where *config* has none, or the data are too few to tell."""
    if config.joint is None or config.experts != "adapted" or not config.two_readings or config.sampled_softmax:
        return ()
    return tuple(domain for domain in domains_with_rows(dataset) if config.adapts(domain))


def forecast_of(dataset: TrainableData, config: PipelineConfig) -> TrainingForecast:
    """What ``train_bundle`` takes."""
    num_experts = len(dataset.vocabulary.domains) + bool(judged_domains(dataset, config))
    size = config.network.decoder_for(dataset)
    return TrainingForecast.of(
        size, num_experts, num_users=len(dataset.train), sampled_softmax=config.sampled_softmax is not None
    )


def find_trained(
    folder: Path, dataset: TrainableData, config: PipelineConfig, *, device: torch.device
) -> Bundle | None:
    """What *folder* holds, if it is a whole bundle that *config* trained on *dataset*."""
    try:
        bundle = load_bundle(folder, device=device)
    except BundleError:
        return None
    made_of = bundle.provenance.get("dataset_fingerprint"), bundle.provenance.get("config")
    # As the manifest has it, in which a tuple is a list.
    wanted = json.loads(json.dumps(settings_of(config)))
    return bundle if made_of == (dataset.fingerprint, wanted) else None


def train_bundle(
    dataset: TrainableData,
    out: Path,
    config: PipelineConfig,
    *,
    device: torch.device,
    run_directory: Path,
    keep_run: bool = False,
    progress: Progress | None = None,
    name: str | None = None,
    init: Bundle | None = None,
) -> Bundle:
    """
    Train the base, then an expert per domain and perhaps a joint one, choose what of them each target reads, and write
    the bundle to *out*.

    After every epoch the state lies in *run_directory*; calling again with the same arguments after a kill goes on
    from there and ends with the same weights. The folder is removed once the bundle is written, unless *keep_run* says
    that more is to come. Of several processes (``models.training.distributed``) the main one writes; all return the
    bundle.

    *name* is what people call the bundle; without it, it is called as the dataset is. *init* is an earlier bundle to go
    on from, whose size the configuration has (``continuation``); what its trials found for a target is kept.

    Raises:
        ResumeMismatchError: *run_directory* belongs to another dataset or configuration.
        OutputExistsError: *out* holds something that is not a bundle.
        BundleMismatchError: *init* is no bundle to go on from here.
        TrainingError: *device* has too little memory left.
    """
    check_destination(out)
    continuation = None if init is None else Continuation.of(init, dataset)
    started = time.perf_counter()
    forecast_of(dataset, config).check(device)
    decoder_config = config.network.decoder_for(dataset)
    # A refresh goes on with the joint expert that there is; it begins none
    judged = judged_domains(dataset, config) if init is None or init.joint is not None else ()
    trained = _train(
        dataset, decoder_config, config, device, run_directory, progress, continuation, joint_for=judged or None
    )
    domains = dataset.vocabulary.domains
    choices = _choose_experts(dataset, trained, judged) if config.two_readings else {}
    facts = _facts(domains, trained, choices)
    if not any(choice.joint for choice in choices.values()):
        trained = dataclasses.replace(trained, joint=None)
    if config.refit:
        trained = _refit(dataset, decoder_config, config, device, run_directory, progress, continuation, trained)
    # If every stage was finished before a kill, only this makes the main process wait until all have read the files.
    distributed.wait_for_all()
    if not distributed.is_main():
        distributed.wait_for_all()
        return load_bundle(out, device=device)
    provenance = {
        "name": name or dataset.manifest.get("name") or out.name,
        "created": now_text(),
        "period": dataset.manifest.get("period"),
        "dataset_fingerprint": dataset.fingerprint,
        "refit": config.refit,
        "config": settings_of(config),
        "dataset": {key: dataset.manifest.get(key) for key in DATASET_FACTS},
        **({} if continuation is None else {"init": continuation.provenance}),
        **facts,
        "device": str(device),
        "processes": distributed.num_processes(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": round(time.perf_counter() - started, 1),
    }
    bundle = save_bundle(
        out,
        vocabulary=dataset.vocabulary,
        base=trained.base,
        experts=trained.experts,
        provenance=provenance,
        tunings=[
            TargetTuning(choice.readings.shares, _kept_guard(init, domain), choice.joint)
            for domain, choice in choices.items()
        ],
        joint=None if trained.joint is None else trained.joint[0],
    )
    if not keep_run:
        forget_run(run_directory)
    distributed.wait_for_all()
    return bundle


def _train(
    dataset: TrainableData,
    decoder_config: DecoderConfig,
    config: PipelineConfig,
    device: torch.device,
    run_directory: Path,
    progress: Progress | None,
    continuation: Continuation | None,
    *,
    joint_for: Sequence[str] | None,
    chosen: Trained | None = None,
) -> Trained:
    """
    Base and experts by validation; or, where that has *chosen* their epochs, those again, in files of their own.

    A joint expert is judged by the domains *joint_for*; None: there is none.
    """
    stage = "" if chosen is None else "refit-"
    base, base_result = train_base(
        dataset,
        decoder_config,
        config.base,
        device=device,
        sampled_softmax=config.sampled_softmax,
        resume_file=run_directory / f"{stage}base{RESUME_SUFFIX}",
        progress=progress,
        course=None if chosen is None else chosen.base_result.course,
        continuation=continuation,
    )
    experts = [
        train_expert(
            dataset,
            base,
            domain,
            _expert_training(config, domain),
            experts=config.experts,
            sampled_softmax=config.sampled_softmax,
            own_rows=config.own_rows,
            two_readings=config.two_readings,
            resume_file=run_directory / f"{stage}expert-{index:02d}{RESUME_SUFFIX}",
            progress=progress,
            course=None if chosen is None else chosen.expert_results[index].course,
        )
        for index, domain in enumerate(dataset.vocabulary.domains)
    ]
    joint = None
    if config.joint is not None and joint_for is not None:
        joint = train_joint_expert(
            dataset,
            decoder_config,
            config.joint,
            joint_for,
            device=device,
            start=None if continuation is None else continuation.joint_expert,
            resume_file=run_directory / f"{stage}joint{RESUME_SUFFIX}",
            progress=progress,
            course=None if chosen is None or chosen.joint is None else chosen.joint[1].course,
        )
    return Trained(base, tuple(e for e, _ in experts), base_result, tuple(result for _, result in experts), joint)


def _choose_experts(dataset: TrainableData, trained: Trained, judged: Collection[str]) -> dict[str, ExpertChoice]:
    """For every domain what its expert is; the *judged* may read the joint one, too."""
    joint = None if trained.joint is None else trained.joint[0]
    choices = {}
    for domain, expert in zip(dataset.vocabulary.domains, trained.experts, strict=True):
        token_range = dataset.vocabulary.token_range(domain)
        held_out = choose_held_out(dataset.train, dataset.validation, token_range)
        choices[domain] = choose_expert(expert, joint if domain in judged else None, held_out, token_range)
    return choices


def _facts(domains: Sequence[str], trained: Trained, choices: Mapping[str, ExpertChoice]) -> dict[str, Any]:
    """What the manifest says of the networks, and of what was chosen."""
    facts: dict[str, Any] = {
        "base": _summary(trained.base_result),
        "experts": {domain: _summary(result) for domain, result in zip(domains, trained.expert_results, strict=True)},
        "own_shares": {domain: dataclasses.asdict(choice.readings) for domain, choice in choices.items()},
    }
    if trained.joint is not None:
        tried = {domain: dataclasses.asdict(one.trial) for domain, one in choices.items() if one.trial is not None}
        facts["joint"] = {**_summary(trained.joint[1]), "tried": tried}
    return facts


def _kept_guard(init: Bundle | None, domain: str) -> Guard | None:
    """What an earlier bundle found for *domain*: a refresh does not try it again."""
    return None if init is None or domain not in init.vocabulary.domains else init.tuning(domain).guard


def _expert_training(config: PipelineConfig, domain: str) -> TrainingConfig:
    """The schedule of one expert: no epoch where it is to stay the base."""
    return config.expert if config.adapts(domain) else dataclasses.replace(config.expert, max_epochs=0)


def _refit(
    dataset: TrainableData,
    decoder_config: DecoderConfig,
    config: PipelineConfig,
    device: torch.device,
    run_directory: Path,
    progress: Progress | None,
    continuation: Continuation | None,
    chosen: Trained,
) -> Trained:
    """Base and experts once more, on everything, each to the epoch that validation chose."""
    everything = undivided(dataset)
    reports = None if progress is None else RefitProgress(progress)
    return _train(
        everything,
        decoder_config,
        config,
        device,
        run_directory,
        reports,
        continuation,
        joint_for=None if chosen.joint is None else (),
        chosen=chosen,
    )


def forget_run(run_directory: Path) -> None:
    """Delete the resume files of an unfinished or finished run, and the folder if nothing else is in it."""
    for pattern in ("base.*", "expert-*.*", "joint.*", "refit-*.*", "[0-9a-f]*.*"):
        for path in (*run_directory.glob(pattern), *run_directory.glob(f".{pattern}")):
            if path.suffix in {RESUME_SUFFIX, PARTIAL_SUFFIX}:
                path.unlink()
    if run_directory.is_dir() and not any(run_directory.iterdir()):
        run_directory.rmdir()


def _summary(result: TrainingResult) -> dict[str, Any]:
    """What the manifest keeps of one stage; NaN (the loss of epoch 0) becomes null, as JSON has none."""
    epochs = [
        {
            "epoch": report.epoch,
            "loss": None if report.epoch == 0 else round(report.loss, 6),
            "validation_ndcg_at_10": report.metric,
        }
        for report in result.epochs
    ]
    return {"best_epoch": result.best_epoch, "best_validation_ndcg_at_10": result.best_metric, "epochs": epochs}
