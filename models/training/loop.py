"""
The one training loop, for the base, the experts and every recommender.

An ``Objective`` says what a batch is, what its loss is and how good the network is on validation; ``fit`` does the
rest: seeded epochs, Adam, early stopping on the best epoch, progress, and resuming after a kill.

Everything random in epoch e is drawn from generators seeded by (seed, objective, e) alone, so a run that resumes
after epoch e goes on exactly as one that never stopped.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.errors import ResumeMismatchError, TrainingError
from models.files import replace_file
from models.training import distributed
from models.training.batches import epoch_seed
from models.training.devices import Precision, autocast, product_precision
from models.training.optimiser import Optimiser

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ModuleT = TypeVar("ModuleT", bound=nn.Module)
ModuleContraT = TypeVar("ModuleContraT", bound=nn.Module, contravariant=True)
BatchT = TypeVar("BatchT")

Schedule = Literal["constant", "linear", "plateau"]

RESUME_SUFFIX = ".safetensors"
# Share of all steps over which the linear schedule climbs, because Adam's first steps are its least certain ones.
WARM_UP_SHARE = 0.05
# Schedule ``plateau``: what a fall leaves of the rate, the fall that ends training, and how many steps without a gain
# make a plateau at least, as the epochs of a small table are a few dozen steps each and its metric wavers.
FALL_FACTOR = 1 / 3
LAST_FALL = 3
LEAST_PLATEAU_STEPS = 150


@dataclass(frozen=True)
class TrainingConfig:
    """
    How to train; the defaults are the released code's.

    Args:
        learning_rate: of Adam, > 0.
        batch_size: rows of one step.
        max_epochs: upper bound of epochs.
        patience: stop after this many epochs in a row without a better validation metric; with ``plateau`` they make a
            plateau. Where epochs are short it is longer, see ``LEAST_PLATEAU_STEPS`` and ``average_decay``.
        seed: of shuffling and dropout.
        precision: of the products; weights, softmax and optimiser stay float32. ``auto`` is bfloat16 on CUDA and
            float32 on the CPU, where few processors multiply bfloat16 natively; on those that do (AVX-512 BF16, AMX)
            ``bfloat16`` about halves the time of a step, on one with AVX2 alone a product took nine times as long.
        schedule: ``constant`` keeps the learning rate; ``linear`` climbs to it over the first 5 % of ``max_epochs`` and
            falls to 0 at their end, which reaches in some ten epochs what a constant rate needs twice as many for.
            ``plateau`` finds its own length: it climbs over the first epoch; after every plateau the best weights come
            back and the rate falls to a third, and the third plateau ends training, so ``max_epochs`` may be generous.
        average_decay: d of the running average of the weights that is validated and kept, a <- d a + (1 - d) w after
            every step, 0 <= d < 1: about the last 1 / (1 - d) steps. 0 keeps the weights of the last step as they are.
            Training waits for a gain that many steps at least: before, the average still holds what came before.
        weight_decay: share of every weight that a step takes off, times its rate (AdamW), >= 0. It takes ABXI further
            and target experts back (docs/experiments/weight-decay.md).

    Raises:
        TrainingError: a value is out of its range.
    """

    learning_rate: float = 3e-4
    batch_size: int = 128
    max_epochs: int = 300
    patience: int = 10
    seed: int = 2025
    precision: Precision = "auto"
    schedule: Schedule = "constant"
    average_decay: float = 0.0
    weight_decay: float = 0.0

    @property
    def may_go_on(self) -> bool:
        """Whether a run that ended at ``max_epochs`` goes on as it would have with more: its rate knows no end."""
        return self.schedule != "linear"

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise TrainingError(f"learning_rate {self.learning_rate} is not above 0")
        for name, least in (("batch_size", 1), ("max_epochs", 0), ("patience", 1)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name} {getattr(self, name)} is less than {least}")
        if not 0 <= self.average_decay < 1:
            raise TrainingError(f"average_decay {self.average_decay} is not in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise TrainingError(f"weight_decay {self.weight_decay} is not a number from 0 on")


# Fields that came later, at the value that all before them had.
_LATER_FIELDS = (("weight_decay", 0.0), ("joint", None))


def settings_of(config: DataclassInstance) -> dict[str, Any]:
    """
    A configuration that holds schedules as what it made is known by: what was made before a field came is found again.

    >>> settings_of(TrainingConfig()) == settings_of(TrainingConfig(weight_decay=0.0))
    True
    >>> "weight_decay" in settings_of(TrainingConfig()), "weight_decay" in settings_of(TrainingConfig(weight_decay=1.0))
    (False, True)
    """
    return dataclasses.asdict(
        config, dict_factory=lambda pairs: dict(pair for pair in pairs if pair not in _LATER_FIELDS)
    )


class Objective(Protocol[ModuleContraT, BatchT]):
    """What ``fit`` optimises; BatchT is whatever the objective's own ``batches`` yields."""

    @property
    def name(self) -> str:
        """Unique within a run; part of every seed and of the name of the resume file."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the data and options behind it: a resume file of another fingerprint is refused."""
        ...

    def batches(self, epoch: int) -> Iterable[BatchT]:
        """One epoch's batches, the same for the same epoch number."""
        ...

    def num_batches(self) -> int:
        """How many batches an epoch has."""
        ...

    def loss(self, module: ModuleContraT, batch: BatchT) -> Tensor:
        """Scalar loss of one batch; the module is in training mode."""
        ...

    def validate(self, module: ModuleContraT) -> float | None:
        """Validation NDCG@10, higher is better; None where there are no validation rows."""
        ...


@dataclass(frozen=True)
class StepReport:
    """One step done; ``loss`` is a device scalar, so reading it every step would synchronise: read it seldom."""

    stage: str
    epoch: int
    step: int
    num_steps: int
    loss: Tensor


@dataclass(frozen=True)
class EpochReport:
    """One epoch done. Epoch 0 is the network as it came, validated before any step; its loss is NaN."""

    stage: str
    epoch: int
    max_epochs: int
    loss: float
    metric: float | None
    best_metric: float | None
    best_epoch: int
    seconds: float


class Progress(Protocol):
    """Where ``fit`` reports."""

    def on_step(self, report: StepReport) -> None:
        """Called after every step."""
        ...

    def on_epoch(self, report: EpochReport) -> None:
        """Called after every epoch, those found in a resume file included."""
        ...


class Silent:
    """Progress that goes nowhere."""

    def on_step(self, report: StepReport) -> None:
        """Nothing."""

    def on_epoch(self, report: EpochReport) -> None:
        """Nothing."""


@dataclass(frozen=True)
class TrainingResult:
    """
    What ``fit`` did: one report per epoch, and which epoch's weights the module now holds.

    ``course`` is how those weights came to be: for each epoch that led to them, how often the rate had fallen. Epochs
    after which the best weights came back are no part of it.
    """

    epochs: tuple[EpochReport, ...]
    best_epoch: int
    best_metric: float | None
    course: tuple[int, ...] = ()

    @property
    def is_cut_short(self) -> bool:
        """Whether the best epoch is the last: more of them might have been better still."""
        return self.best_metric is not None and 0 < self.best_epoch == self.epochs[-1].epoch


def fit(
    module: ModuleT,
    objective: Objective[ModuleT, BatchT],
    config: TrainingConfig,
    *,
    resume_file: Path | None = None,
    progress: Progress | None = None,
    course: Sequence[int] | None = None,
    keep_last: bool = False,
) -> TrainingResult:
    """
    Train *module* in place and leave it with its best epoch's weights, in evaluation mode.

    1. Resume: if *resume_file* exists, weights, optimiser and history come from it.
    2. Epoch 0 validates the network as it came, so that adapting can never end worse than not adapting.
    3. Each epoch: seed, steps, validation (of the weights' running average, with ``average_decay``), then the resume
       file is replaced atomically.
    4. Stop after ``patience`` epochs without a strictly better metric (``plateau``: after the third plateau), or at
       ``max_epochs``.
    5. Load the best epoch's weights; without validation rows, or with *keep_last*, the last epoch's.

    Of several processes (``distributed``) each steps on its own part of every batch, on the sum of all their
    gradients; the objective's losses add up to that of the whole batch. The main process's metric counts and it alone
    writes the resume file, which all of them read: they share a file system.

    Args:
        module: already on its device.
        objective: data, loss and validation.
        config: schedule.
        resume_file: safetensors file to resume from and to write after every epoch. A run that ended at its
            ``max_epochs`` goes on from it with more of them, unless the schedule counts on their number.
        progress: receiver of reports.
        course: of an earlier run whose schedule is to be repeated without validation: as many epochs, each after as
            many falls of the rate (``TrainingResult.course``).
        keep_last: validation is reported, and decides nothing.

    Raises:
        ResumeMismatchError: the resume file belongs to another objective or configuration.
        TrainingError: there is nothing to train on, or the loss became NaN or infinite.
    """
    progress = progress or Silent()
    if config.max_epochs and not objective.num_batches():
        raise TrainingError(f"{objective.name}: nothing to train on: no sequence has an item to predict")
    state = _State.fresh(module, config, keep_last=keep_last)
    device = next(module.parameters()).device
    identity = _identity(objective, config, device)
    if resume_file is not None and resume_file.is_file():
        state.load(resume_file, identity)
        for report in state.history:
            progress.on_epoch(report)
    else:
        started = time.perf_counter()
        metric = distributed.take_from_main(objective.validate(module.eval()))
        state.record(objective.name, 0, math.nan, metric, config, time.perf_counter() - started)
        progress.on_epoch(state.history[-1])
    patience = _patience(config, objective.num_batches())
    while not state.finished(config, patience) and (course is None or len(state.history) <= len(course)):
        epoch = len(state.history)
        started = time.perf_counter()
        falls = count_plateaus(state.history, patience) if course is None else course[epoch - 1]
        if config.schedule == "plateau" and falls > count_plateaus(state.history[:-1], patience):
            module.load_state_dict(state.best_weights)
        loss = _run_epoch(state, objective, config, epoch, progress, falls)
        metric = distributed.take_from_main(objective.validate(state.kept.eval()))
        state.record(objective.name, epoch, loss, metric, config, time.perf_counter() - started)
        if resume_file is not None and distributed.is_main():
            state.save(resume_file, identity)
        progress.on_epoch(state.history[-1])
    module.load_state_dict(state.best_weights)
    module.eval()
    last = state.history[-1]
    followed = _course(state.history, patience if config.schedule == "plateau" else None)
    return TrainingResult(tuple(state.history), last.best_epoch, last.best_metric, followed)


def count_plateaus(history: Sequence[EpochReport], epochs: int) -> int:
    """How many stretches of so many *epochs* without a better metric *history* holds, one after the other."""
    found = waited = 0
    for report in history[1:]:
        waited = 0 if report.best_epoch == report.epoch else waited + 1
        if waited == epochs:
            found, waited = found + 1, 0
    return found


def _course(history: Sequence[EpochReport], plateau_epochs: int | None) -> tuple[int, ...]:
    """See ``TrainingResult``; *plateau_epochs* is None where the rate never falls."""
    course: list[int] = []
    falls = waited = kept = 0
    for report in history[1:]:
        course.append(falls)
        waited = 0 if report.best_epoch == report.epoch else waited + 1
        kept = kept if waited else len(course)
        if waited == plateau_epochs:
            falls, waited = falls + 1, 0
            del course[kept:]
    return tuple(course[:kept])


def learning_rate_at(config: TrainingConfig, share: float, falls: int = 0) -> float:
    """
    The learning rate when *share* of the steps of ``max_epochs`` is done, 0 <= share < 1, after so many *falls*.

    >>> config = TrainingConfig(learning_rate=1.0, schedule="linear")
    >>> [round(learning_rate_at(config, share), 3) for share in (0.0, 0.025, 0.05, 0.5, 0.9)]
    [0.0, 0.5, 1.0, 0.526, 0.105]
    >>> config = TrainingConfig(learning_rate=9.0, schedule="plateau", max_epochs=10)
    >>> [learning_rate_at(config, share, falls) for share, falls in ((0.05, 0), (0.2, 0), (0.5, 1), (0.9, 2))]
    [4.5, 9.0, 3.0, 1.0]
    """
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "plateau":
        return config.learning_rate * FALL_FACTOR**falls * min(1.0, share * config.max_epochs)
    return config.learning_rate * min(share / WARM_UP_SHARE, (1.0 - share) / (1.0 - WARM_UP_SHARE))


def _run_epoch(
    state: _State[ModuleT],
    objective: Objective[ModuleT, BatchT],
    config: TrainingConfig,
    epoch: int,
    progress: Progress,
    falls: int,
) -> float:
    module, optimiser = state.module, state.optimiser
    device = next(module.parameters()).device
    module.train()
    total = torch.zeros((), device=device)
    num_steps = objective.num_batches()
    steps = 0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # Every process has its own rows, and so its own dropout masks.
        name = objective.name if distributed.is_main() else f"{objective.name} rank {distributed.rank()}"
        torch.manual_seed(epoch_seed(config.seed, name, epoch))
        for batch in objective.batches(epoch):
            with autocast(device, config.precision):
                loss = objective.loss(module, batch)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            distributed.sum_gradients(module)
            share = (epoch - 1 + (steps + 0.5) / num_steps) / config.max_epochs
            optimiser.step(learning_rate_at(config, share, falls))
            if state.average is not None:
                state.average.update_parameters(module)
            total += distributed.sum_over_processes(loss.detach())
            steps += 1
            progress.on_step(StepReport(objective.name, epoch, steps, num_steps, total / steps))
    mean = float(total) / max(1, steps)
    if not math.isfinite(mean):
        raise TrainingError(f"{objective.name}: the loss of epoch {epoch} is {mean}")
    return mean


def _patience(config: TrainingConfig, num_steps: int) -> int:
    """Epochs without a gain that end training or make a plateau, for epochs of so many steps."""
    least = LEAST_PLATEAU_STEPS if config.schedule == "plateau" else 0
    if config.average_decay:
        least = max(least, round(1 / (1 - config.average_decay)))
    return max(config.patience, -(-least // max(1, num_steps)))


def _identity(objective: Objective[ModuleContraT, BatchT], config: TrainingConfig, device: torch.device) -> str:
    options = {**settings_of(config), "precision": product_precision(device, config.precision)}
    if config.may_go_on:
        del options["max_epochs"]
    if distributed.num_processes() > 1:
        options["processes"] = distributed.num_processes()
    return json.dumps([objective.name, objective.fingerprint, options, device.type], sort_keys=True)


@dataclass
class _State(Generic[ModuleT]):
    """All that changes from epoch to epoch; what the resume file holds."""

    module: ModuleT
    optimiser: Optimiser
    average: AveragedModel | None
    best_weights: dict[str, Tensor]
    history: list[EpochReport]
    keep_last: bool

    @classmethod
    def fresh(cls, module: ModuleT, config: TrainingConfig, *, keep_last: bool) -> _State[ModuleT]:
        decay = config.average_decay
        # The average starts as the weights after the first step, so its start needs no correction.
        averaging = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average = AveragedModel(module, multi_avg_fn=averaging) if decay else None
        if average is not None:
            # A copied GRU's weights lie apart; CUDA would join them at every call, with a warning. Moving joins them.
            average.module.to(next(module.parameters()).device)
        optimiser = Optimiser(module, config.learning_rate, config.weight_decay)
        return cls(module, optimiser, average, _clone(module.state_dict()), [], keep_last)

    @property
    def kept(self) -> ModuleT:
        """What is validated, and whose weights are kept: the running average where there is one."""
        return self.module if self.average is None else cast(ModuleT, self.average.module)

    def record(
        self, stage: str, epoch: int, loss: float, metric: float | None, config: TrainingConfig, seconds: float
    ) -> None:
        previous = self.history[-1] if self.history else None
        best_metric = previous.best_metric if previous else None
        best_epoch = previous.best_epoch if previous else 0
        if self.keep_last or metric is None or best_metric is None or metric > best_metric:
            best_metric, best_epoch = metric, epoch
            self.best_weights = _clone(self.kept.state_dict())
        self.history.append(
            EpochReport(stage, epoch, config.max_epochs, loss, metric, best_metric, best_epoch, seconds)
        )

    def finished(self, config: TrainingConfig, patience: int) -> bool:
        last = self.history[-1]
        if config.schedule == "plateau":
            return last.epoch >= config.max_epochs or count_plateaus(self.history, patience) >= LAST_FALL
        return last.epoch >= config.max_epochs or last.epoch - last.best_epoch >= patience

    def save(self, path: Path, identity: str) -> None:
        tensors = {f"module.{key}": value for key, value in self.module.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.best_weights.items()}
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        tensors |= self.optimiser.state_tensors()
        history = [dataclasses.asdict(report) for report in self.history]
        metadata = {"identity": identity, "history": json.dumps(history)}
        with replace_file(path) as partial:
            save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, partial, metadata=metadata)

    def load(self, path: Path, identity: str) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                if metadata["identity"] != identity:
                    raise ResumeMismatchError(
                        f"{path} belongs to another run:\n  there: {metadata['identity']}\n  here:  {identity}\n"
                        "give another run folder, or start anew"
                    )
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            self.module.load_state_dict(under("module.", tensors))
            self.best_weights = _clone(under("best.", tensors))
            if self.average is not None:
                self.average.load_state_dict(under("average.", tensors))
            self.optimiser.load_state_tensors(tensors)
            self.history = [EpochReport(**report) for report in json.loads(metadata["history"])]
        except ResumeMismatchError:
            raise
        except Exception as error:
            raise ResumeMismatchError(f"{path}: not a readable resume file: {error}") from error


def _clone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in weights.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The *tensors* whose keys begin with *prefix*, by the rest of their keys."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
