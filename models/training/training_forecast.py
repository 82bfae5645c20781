"""What training a bundle takes of memory, told before it begins, so that it ends there where it cannot fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from models.errors import TrainingError
from models.memory_sizes import available_bytes, size_text
from models.network.decoder import Decoder, DecoderConfig
from models.network.losses import CHUNK_ELEMENTS

BYTES_A_WEIGHT = 4
# Copies of a network while it is trained: weights, two moments, the best so far and its successor; of gradients two
# while they are added up, the table's as rows in a sampled softmax.
COPIES = 5
GRADIENT_COPIES = 2
# Of a user: where its sequence begins, how long it is and what it predicts, its place in an epoch, its validation item.
BYTES_A_USER = 48
# Interpreter, libraries, data of a small log, and weights of a softmax at once.
BASE_BYTES = 700 * 10**6 + BYTES_A_WEIGHT * CHUNK_ELEMENTS


@dataclass(frozen=True)
class TrainingForecast:
    """
    What training takes.

    Args:
        num_weights: of one network; base and experts are of one size.
        num_bytes: what is held at once, on the device that trains, when the last network is trained beside the base and
            the experts before it. A little less than the peak: allocators keep some of what is freed between steps of
            different shapes, about 0.4 GB with 15,000 items, 1.2 in bfloat16 on a CPU.
    """

    num_weights: int
    num_bytes: int

    @classmethod
    def of(
        cls, decoder: DecoderConfig, num_domains: int, *, num_users: int = 0, sampled_softmax: bool
    ) -> TrainingForecast:
        """Of a base and so many experts, trained on the sequences of so many users."""
        with torch.device("meta"):
            num_weights = sum(math.prod(one.shape) for one in Decoder(decoder).parameters())
        copies = COPIES + (0 if sampled_softmax else GRADIENT_COPIES)
        networks = BYTES_A_WEIGHT * num_weights * (copies + num_domains)
        return cls(num_weights, BASE_BYTES + networks + BYTES_A_USER * num_users)

    def check(self, device: torch.device) -> None:
        """
        See that it fits.

        Raises:
            TrainingError: *device* has too little memory left.
        """
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
        if self.num_bytes > free:
            raise TrainingError(
                f"networks of {self.num_weights:,} weights need {size_text(self.num_bytes)} of memory at least, and "
                f"{size_text(free)} are free: take a smaller --width, fewer items (taesar prepare "
                "--min-item-interactions), --sampled-softmax 8192, or a larger machine"
            )

    def __str__(self) -> str:
        return f"networks of {self.num_weights:,} weights, which take at least {size_text(self.num_bytes)} of memory"
