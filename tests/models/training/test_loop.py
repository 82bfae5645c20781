"""The loop: early stopping on the best epoch, resuming after a kill, seeded batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from models.errors import ResumeMismatchError, TrainingError
from models.training import loop
from models.training.batches import epoch_generator, length_bucketed_batches
from models.training.devices import resolve_device
from models.training.loop import (
    EpochReport,
    Schedule,
    Silent,
    StepReport,
    TrainingConfig,
    count_plateaus,
    fit,
    learning_rate_at,
)

CONFIG = TrainingConfig(learning_rate=0.05, batch_size=4, max_epochs=8, patience=3)
# So large a rate that the metric wavers, and falls come early.
PLATEAUS = replace(CONFIG, schedule="plateau", learning_rate=0.7, patience=1)


class Line(nn.Module):
    """y = w x with dropout, so that the random state matters."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(3))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x) @ self.slope


@dataclass(frozen=True)
class Regression:
    """Fit a line; validation is scripted or minus the squared error."""

    name: str = "line"
    fingerprint: str = "data-1"
    seed: int = 1
    scripted: tuple[float, ...] = ()
    calls: list[int] = field(default_factory=list)

    def num_batches(self) -> int:
        return 5

    def batches(self, epoch: int) -> Iterable[Tensor]:
        generator = epoch_generator(self.seed, self.name, epoch)
        return [torch.from_numpy(generator.normal(size=(4, 3)).astype(np.float32)) for _ in range(5)]

    def loss(self, module: Line, batch: Tensor) -> Tensor:
        return (module(batch) - batch.sum(dim=1)).square().mean()

    def validate(self, module: Line) -> float | None:
        self.calls.append(1)
        if self.scripted:
            return self.scripted[len(self.calls) - 1]
        return -float((module.slope.detach() - 1).square().sum())


def train(objective: Regression, config: TrainingConfig = CONFIG, **options: object) -> tuple[Line, list[EpochReport]]:
    module = Line()
    result = fit(module, objective, config, **options)  # type: ignore[arg-type]
    return module, list(result.epochs)


def test_training_learns() -> None:
    _, epochs = train(Regression())
    assert epochs[0].metric == pytest.approx(-3)
    assert max(report.metric or -3 for report in epochs) > -1


def test_it_stops_after_patience_misses_and_keeps_the_best_epoch() -> None:
    """Best at epoch 2; ties are misses; patience 3 stops after epoch 5."""
    weights = {}

    class Recording(Silent):
        def on_epoch(self, report: EpochReport) -> None:
            weights[report.epoch] = module.slope.detach().clone()

    module = Line()
    result = fit(module, Regression(scripted=(0.1, 0.2, 0.5, 0.5, 0.4, 0.3, 0.9)), CONFIG, progress=Recording())

    assert [report.epoch for report in result.epochs] == [0, 1, 2, 3, 4, 5]
    assert (result.best_epoch, result.best_metric) == (2, 0.5)
    assert torch.equal(module.slope.detach(), weights[2])


def test_the_linear_schedule_climbs_and_falls_to_nothing_by_the_last_step() -> None:
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"]))
    try:
        train(Regression(), replace(CONFIG, schedule="linear", patience=99))
    finally:
        hook.remove()

    peak = rates.index(max(rates))
    assert len(rates) == CONFIG.max_epochs * Regression().num_batches()
    assert 0 < peak < 0.1 * len(rates)
    assert rates == sorted(rates[:peak]) + sorted(rates[peak:], reverse=True)
    assert max(rates) <= CONFIG.learning_rate
    assert 0 < rates[-1] < 0.05 * CONFIG.learning_rate


def test_a_constant_schedule_is_one_rate() -> None:
    assert {learning_rate_at(CONFIG, share) for share in (0.0, 0.01, 0.5, 0.999)} == {CONFIG.learning_rate}


def test_the_plateau_schedule_goes_on_from_the_best_weights_at_a_third_of_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two epochs without a gain make a plateau here: after epochs 3, 6 and 8, the third of which ends training."""
    monkeypatch.setattr(loop, "LEAST_PLATEAU_STEPS", 1)
    config = replace(CONFIG, schedule="plateau", patience=2, max_epochs=50)
    begun: list[tuple[float, list[float]]] = []
    ended: dict[int, list[float]] = {}

    class Recording(Silent):
        def on_epoch(self, report: EpochReport) -> None:
            ended[report.epoch] = module.slope.tolist()

    module = Line()
    hook = register_optimizer_step_pre_hook(
        lambda optimiser, *_: begun.append((optimiser.param_groups[0]["lr"], module.slope.tolist()))
    )
    try:
        scripted = (0.1, 0.5, 0.4, 0.4, 0.6, 0.6, 0.5, 0.1, 0.1, 0.9)
        result = fit(module, Regression(scripted=scripted), config, progress=Recording())
    finally:
        hook.remove()
    num_steps = Regression().num_batches()
    first_steps, last_steps = begun[::num_steps], begun[num_steps - 1 :: num_steps]
    rate = config.learning_rate

    assert [report.epoch for report in result.epochs] == list(range(9))
    assert (result.best_epoch, result.is_cut_short) == (4, False)
    assert first_steps[0][0] == pytest.approx(rate * 0.5 / num_steps)
    assert [at for at, _ in last_steps[1:]] == pytest.approx([rate] * 2 + [rate / 3] * 3 + [rate / 9] * 2)
    # The epoch after a plateau begins with the best weights, any other with those that the last one ended with.
    begins_with = [0, 1, 2, 1, 4, 5, 4, 7]
    assert [slope for _, slope in first_steps] == [ended[epoch] for epoch in begins_with]


def test_a_course_repeats_the_rates_that_led_to_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs 2, 3 and 5 to 8 led nowhere: one at the rate, then one at a third of it; validation decides nothing."""
    monkeypatch.setattr(loop, "LEAST_PLATEAU_STEPS", 1)
    config = replace(CONFIG, schedule="plateau", patience=2, max_epochs=50)
    scripted = (0.1, 0.5, 0.4, 0.4, 0.6, 0.6, 0.5, 0.1, 0.1, 0.9)
    first = fit(Line(), Regression(scripted=scripted), config)
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"]))
    try:
        again = fit(Line(), Regression(scripted=(0.9, *[0.1] * 9)), config, course=first.course)
    finally:
        hook.remove()

    assert first.course == (0, 1)
    assert [report.epoch for report in again.epochs] == [0, 1, 2]
    assert rates[Regression().num_batches() :] == pytest.approx([CONFIG.learning_rate / 3] * Regression().num_batches())


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_where_the_rate_does_not_fall_the_course_is_the_epochs_up_to_the_best(schedule: Schedule) -> None:
    result = fit(Line(), Regression(scripted=(0.1, 0.2, 0.5, 0.4, 0.3, 0.2)), replace(CONFIG, schedule=schedule))

    assert (result.best_epoch, result.course) == (2, (0, 0))


def test_a_plateau_takes_as_many_epochs_as_make_150_steps() -> None:
    """The epochs of a small table are few steps each; patience is the least."""
    epochs = -(-150 // Regression().num_batches())
    scripted = (0.5, *[0.1] * (3 * epochs + 9))
    result = fit(Line(), Regression(scripted=scripted), replace(CONFIG, schedule="plateau", max_epochs=1000))

    assert result.epochs[-1].epoch == 3 * epochs


@pytest.mark.parametrize(
    ("scripted", "expected"), [((0.1, 0.2, 0.3), True), ((0.1, 0.3, 0.2), False), ((0.3, 0.2, 0.1), False)]
)
def test_a_run_that_was_best_at_its_last_epoch_says_so(scripted: tuple[float, ...], expected: bool) -> None:
    result = fit(Line(), Regression(scripted=scripted), replace(CONFIG, max_epochs=2))

    assert result.is_cut_short == expected


def test_the_running_average_of_the_weights_is_what_is_validated_and_kept() -> None:
    """a <- d a + (1 - d) w after every step, from the first step's weights on; training itself goes on without it."""
    config = replace(CONFIG, average_decay=0.7, max_epochs=2)
    steps: list[Tensor] = []

    class Recording(Silent):
        def on_step(self, report: StepReport) -> None:
            steps.append(module.slope.detach().clone())

    module = Line()
    result = fit(module, Regression(), config, progress=Recording())

    averages = [steps[0]]
    for weights in steps[1:]:
        averages.append(0.7 * averages[-1] + 0.3 * weights)
    validated = {epoch: -float((averages[5 * epoch - 1] - 1).square().sum()) for epoch in (1, 2)}
    assert {report.epoch: report.metric for report in result.epochs[1:]} == pytest.approx(validated)
    torch.testing.assert_close(module.slope.detach(), averages[5 * result.best_epoch - 1])

    steps, plain = [], steps
    module = Line()
    fit(module, Regression(), replace(config, average_decay=0.0), progress=Recording())
    assert all(torch.equal(one, other) for one, other in zip(plain, steps, strict=True))


@pytest.mark.parametrize(("decay", "last"), [(0.0, 4), (0.5, 4), (0.96, 6)])
def test_an_average_is_waited_for_until_it_has_forgotten(decay: float, last: int) -> None:
    """
    Best at epoch 1, epochs of five steps, patience 3: an average of 25 steps is waited for during five epochs.

    GRU4Rec once ended at epoch 11 of a small table, a quarter as good as with other seeds, as its average fell first.
    """
    metrics = (0.1, 0.5, *(0.4,) * 7)
    result = fit(Line(), Regression(scripted=metrics), replace(CONFIG, average_decay=decay))

    assert result.epochs[-1].epoch == last


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_an_error(decay: float) -> None:
    with pytest.raises(TrainingError, match=r"average_decay .* is not in \[0, 1\)"):
        replace(CONFIG, average_decay=decay)


@pytest.mark.parametrize("decay", [-0.1, math.inf, math.nan])
def test_a_decay_of_weights_out_of_range_is_an_error(decay: float) -> None:
    with pytest.raises(TrainingError, match=r"weight_decay .* is not a number from 0 on"):
        replace(CONFIG, weight_decay=decay)


def test_a_network_that_only_gets_worse_is_returned_as_it_came() -> None:
    module, _ = train(Regression(scripted=(0.9, 0.1, 0.1, 0.1)))
    assert torch.equal(module.slope, torch.zeros(3))


def test_where_the_last_epoch_is_to_be_kept_a_worse_one_is() -> None:
    module = Line()
    result = fit(module, Regression(scripted=(0.9, 0.1, 0.3)), replace(CONFIG, max_epochs=2), keep_last=True)

    assert (result.best_epoch, result.best_metric) == (2, 0.3)
    assert [report.metric for report in result.epochs] == [0.9, 0.1, 0.3]
    assert module.slope.abs().sum() > 0


def test_without_validation_rows_every_epoch_runs_and_the_last_is_kept() -> None:
    class Unvalidated(Regression):
        def validate(self, module: Line) -> float | None:
            return None

    module, epochs = train(Unvalidated())
    assert len(epochs) == 1 + CONFIG.max_epochs
    assert epochs[-1].best_epoch == CONFIG.max_epochs
    assert module.slope.abs().sum() > 0


class Killed(Exception):
    """Stands for a kill at a random moment."""


@dataclass
class KillAt(Silent):
    """Raises after the given number of steps."""

    steps: int

    def on_step(self, report: object) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise Killed


@pytest.mark.parametrize("steps", [0, 3, 5, 12, 29])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, schedule="linear"),
        PLATEAUS,
        replace(CONFIG, average_decay=0.7),
        replace(CONFIG, weight_decay=0.3),
    ],
    ids=["constant", "linear", "plateau", "averaged", "decaying"],
)
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, steps: int, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, wherever the kill falls, also twice."""
    monkeypatch.setattr(loop, "LEAST_PLATEAU_STEPS", 1)
    expected, expected_epochs = train(Regression(), config)
    assert config is not PLATEAUS or 1 < count_plateaus(expected_epochs, 1) <= len(expected_epochs) - 3
    resume_file = tmp_path / "line.safetensors"
    for extra in (steps, 4):
        with pytest.raises(Killed):
            fit(Line(), Regression(), config, resume_file=resume_file, progress=KillAt(extra))
    actual, epochs = train(Regression(), config, resume_file=resume_file)

    assert torch.equal(actual.slope, expected.slope)
    assert [(e.epoch, e.loss, e.metric) for e in epochs[1:]] == [
        (e.epoch, e.loss, e.metric) for e in expected_epochs[1:]
    ]


def test_a_finished_run_resumes_without_training(tmp_path: Path) -> None:
    resume_file = tmp_path / "line.safetensors"
    expected, _ = train(Regression(), resume_file=resume_file)
    actual, _ = train(Regression(), resume_file=resume_file, progress=KillAt(0))
    assert torch.equal(actual.slope, expected.slope)


@pytest.mark.parametrize(
    ("objective", "config"),
    [
        (Regression(fingerprint="data-2"), CONFIG),
        (Regression(name="other"), CONFIG),
        (Regression(), replace(CONFIG, learning_rate=0.1)),
    ],
)
def test_a_resume_file_of_another_run_is_refused(tmp_path: Path, objective: Regression, config: TrainingConfig) -> None:
    resume_file = tmp_path / "line.safetensors"
    train(Regression(), resume_file=resume_file)
    with pytest.raises(ResumeMismatchError, match="belongs to another run"):
        train(objective, config, resume_file=resume_file)


def test_a_damaged_resume_file_is_refused(tmp_path: Path) -> None:
    resume_file = tmp_path / "line.safetensors"
    train(Regression(), resume_file=resume_file)
    resume_file.write_bytes(resume_file.read_bytes()[:50])
    with pytest.raises(ResumeMismatchError, match="not a readable resume file"):
        train(Regression(), resume_file=resume_file)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    class Diverging(Regression):
        def loss(self, module: Line, batch: Tensor) -> Tensor:
            return module(batch).sum() * math.nan

    with pytest.raises(TrainingError, match="loss of epoch 1 is nan"):
        train(Diverging())


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(Regression())
    assert torch.equal(torch.rand(3), expected)


@given(st.lists(st.integers(1, 50), min_size=0, max_size=200), st.integers(1, 9), st.integers(0, 99))
def test_every_row_is_in_exactly_one_batch(lengths: list[int], batch_size: int, seed: int) -> None:
    def batches() -> Iterator[np.ndarray]:
        return length_bucketed_batches(np.asarray(lengths, dtype=np.int64), batch_size, np.random.default_rng(seed))

    rows = [batch.tolist() for batch in batches()]
    assert sorted(row for batch in rows for row in batch) == list(range(len(lengths)))
    assert all(0 < len(batch) <= batch_size for batch in rows)
    assert rows == [batch.tolist() for batch in batches()]


def test_unknown_and_absent_devices_are_errors() -> None:
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(TrainingError, match="unknown device 'tpu9'"):
        resolve_device("tpu9")
    if not torch.cuda.is_available():
        assert resolve_device("auto").type == "cpu"
        with pytest.raises(TrainingError, match="finds no CUDA device"):
            resolve_device("cuda")
