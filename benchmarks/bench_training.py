"""
One training step of the base: ours and the released step on the same sequences, interleaved in one process.

    python -m benchmarks.bench_training
    python -m benchmarks.bench_training --vocabularies 8000 100000 --batch 16 --rounds 5
    python -m benchmarks.bench_training --vocabularies 100000 1000000 --batch 16 --sampled-softmax 8192

The last line is JSON. Both sides do loss, gradients and Adam on the same rows from the same weights; a token is an item
that is predicted, padding is none. `ours_bfloat16` is ours with products in bfloat16 (TrainingConfig.precision), which
few processors do fast; its loss is another number and compared apart. `ours_sampled`, with --sampled-softmax, estimates
the softmax from so many draws; its loss is an estimate of the others'. Dropout is off so that the losses can be
compared; with it on, both sides draw the same number of masks per position. The softmax of all holds the padding
column, as the released one does. Where the released step does not fit into memory only ours is timed. Peak memory is
that of a fresh process after two steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import released
from benchmarks.measure import (
    CPU,
    MAX_LENGTH,
    SEED,
    Clock,
    available_megabytes,
    interleaved_seconds,
    machine,
    peak_megabytes,
    random_sequences,
    rounded,
)
from models.data.dataset import pad_right
from models.network.decoder import Decoder, DecoderConfig
from models.network.losses import next_item_targets
from models.network.negatives import PopularitySampler
from models.training.objective import HeldOut, PredictionBatch, PredictionObjective, make_trainable
from models.training.optimiser import Optimiser
from models.vocabulary import TokenRange

VOCABULARIES = (8_000, 32_000, 100_000)
LEARNING_RATE = 3e-4
# Copies of [B x 128, V] that the released step holds at once: logits, their log-softmax and a gradient.
RELEASED_COPIES = 3
# Whose peak memory a fresh process measures.
PROCESSES = ("ours", "ours_bfloat16", "ours_sampled", "released")


class Side:
    """A network of its own and one step of training on it."""

    def __init__(
        self,
        num_items: int,
        loss: Callable[[Decoder, Tensor], Tensor],
        device: torch.device,
        *,
        num_draws: int | None = None,
    ) -> None:
        torch.manual_seed(SEED)
        config = DecoderConfig(num_items=num_items, max_length=MAX_LENGTH, dropout=0.0, attention_dropout=0.0)
        self.decoder = Decoder(config).to(device)
        make_trainable(self.decoder, sampled_softmax=num_draws)
        self.optimiser = Optimiser(self.decoder, LEARNING_RATE)
        self.loss = loss
        self.losses: list[float] = []

    def step(self, whole_BL: Tensor) -> None:
        """Loss, gradients, Adam."""
        loss = self.loss(self.decoder, whole_BL)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step(LEARNING_RATE)
        self.losses.append(float(loss.detach()))


def ours(
    num_items: int, device: torch.device = CPU, *, low_precision: bool = False, num_draws: int | None = None
) -> Side:
    """The step of ``train_base``; *low_precision* as ``TrainingConfig.precision`` bfloat16."""
    generator = np.random.default_rng(SEED)
    sampler = PopularitySampler(generator.permutation(num_items) + 1, num_draws) if num_draws else None
    objective = PredictionObjective(
        name="bench",
        fingerprint="",
        sequences=(),
        targets_of=next_item_targets,
        candidates=TokenRange(0, num_items),
        validation=HeldOut((), pad_right([], 0).numpy().ravel()),
        max_length=MAX_LENGTH,
        batch_size=1,
        seed=SEED,
    )

    def loss(decoder: Decoder, whole_BL: Tensor) -> Tensor:
        batch = PredictionBatch(whole_BL, sampler.draw(generator) if sampler else None)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low_precision):
            return objective.loss(decoder, batch)

    return Side(num_items, loss, device, num_draws=num_draws)


def baseline(num_items: int, device: torch.device = CPU) -> Side:
    """The released step."""
    return Side(num_items, lambda decoder, whole_BL: released.training_loss(decoder, whole_BL, MAX_LENGTH), device)


def bench(
    num_items: int, batch: int, rounds: int, clock: Clock, num_draws: int | None, device: torch.device
) -> dict[str, Any]:
    """Times, losses and memory of one shape."""
    sequences = random_sequences(batch, num_items)
    whole_BL = pad_right(sequences, max(map(len, sequences))).to(device)
    num_tokens = int((next_item_targets(whole_BL) > 0).sum())
    sides = {"ours": ours(num_items, device), "ours_bfloat16": ours(num_items, device, low_precision=True)}
    if num_draws:
        sides["ours_sampled"] = ours(num_items, device, num_draws=num_draws)
    if _fits(num_items, batch, device):
        sides["released"] = baseline(num_items, device)
    programs = {name: lambda side=side: side.step(whole_BL) for name, side in sides.items()}
    seconds = interleaved_seconds(programs, rounds, clock, device)
    reference = "released" if "released" in sides else "ours"
    losses = {name: side.losses for name, side in sides.items()}
    expected = losses[reference]
    differences = {
        name: max(abs(loss - other) / other for loss, other in zip(own, expected, strict=True))
        for name, own in losses.items()
        if name != reference
    }
    if device.type == "cuda":  # what the fresh processes are to have
        del programs, sides
        torch.cuda.empty_cache()
    return {
        "vocabulary": num_items,
        "batch": batch,
        "tokens": num_tokens,
        "tokens_per_second": {name: num_tokens / value for name, value in seconds.items()},
        "seconds_per_step": seconds,
        f"times_{reference}": {name: seconds[reference] / seconds[name] for name in differences},
        "largest_relative_loss_difference": differences,
        "steps_compared": len(expected),
        "peak_megabytes": {
            "ours": _memory("ours", num_items, batch, device),
            "ours_at_4x_batch": _memory("ours", num_items, 4 * batch, device),
            "ours_bfloat16": _memory("ours_bfloat16", num_items, batch, device),
            **(
                {}
                if num_draws is None
                else {"ours_sampled": _memory("ours_sampled", num_items, batch, device, num_draws)}
            ),
            "released": _memory("released", num_items, batch, device),
        },
    }


def _memory(name: str, num_items: int, batch: int, device: torch.device, num_draws: int | None = None) -> int | None:
    """Peak megabytes of a fresh process, None where the machine has no room for it."""
    if name == "released" and not _fits(num_items, batch, device):
        return None
    command = [sys.executable, "-m", "benchmarks.bench_training", "--peak", name, "--batch", str(batch)]
    command += ["--vocabularies", str(num_items), "--threads", str(torch.get_num_threads()), "--device", str(device)]
    if num_draws is not None:
        command += ["--sampled-softmax", str(num_draws)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def _fits(num_items: int, batch: int, device: torch.device) -> bool:
    """Whether the machine has room for the released step."""
    needed = RELEASED_COPIES * batch * MAX_LENGTH * num_items * 4 / 1e6
    return needed + 2_000 < available_megabytes(device)


def _peak(name: str, num_items: int, batch: int, device: torch.device, num_draws: int | None) -> int:
    if name == "released":
        side = baseline(num_items, device)
    else:
        side = ours(num_items, device, low_precision=name == "ours_bfloat16", num_draws=num_draws)
    sequences = random_sequences(batch, num_items)
    whole_BL = pad_right(sequences, max(map(len, sequences))).to(device)
    side.step(whole_BL)
    side.step(whole_BL)
    return peak_megabytes(device)


def main() -> None:
    """Run every shape; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=VOCABULARIES)
    parser.add_argument(
        "--batch", type=int, default=16, help="rows of a step; the paper's 128 need 20 GB at V = 100,000"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sampled-softmax", type=int, help="time ours with so many draws per step as well")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda")
    parser.add_argument("--peak", choices=PROCESSES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        draws = arguments.sampled_softmax
        print(_peak(arguments.peak, arguments.vocabularies[0], arguments.batch, arguments.device, draws))
        return
    rows = []
    for num_items in arguments.vocabularies:
        draws, device = arguments.sampled_softmax, arguments.device
        rows.append(bench(num_items, arguments.batch, arguments.rounds, arguments.clock, draws, device))
        print(json.dumps(rounded(rows[-1])), flush=True)
    result = {"benchmark": "training", "machine": machine(), "clock": arguments.clock, "device": str(arguments.device)}
    print(json.dumps({**result, "rows": rounded(rows)}))


if __name__ == "__main__":
    main()
