"""
Logits of a tile -> softmax weights, compiled: what ``losses`` does in five passes of torch, in a third of their time.

Shapes: C = positions of a chunk, W = candidates of a tile.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from models.kernels.build import load

SOURCE = Path(__file__).with_suffix(".cpp")
FUNCTIONS = {torch.float32: "taesar_weigh_float32", torch.bfloat16: "taesar_weigh_bfloat16"}


def is_available() -> bool:
    """Whether the kernel is compiled here; the first call compiles it, a matter of seconds."""
    return _library() is not None


def fits(logits_CW: Tensor) -> bool:
    """Whether the kernel reads such logits: float32 or bfloat16, row after row in the CPU's memory."""
    return logits_CW.device.type == "cpu" and logits_CW.dtype in FUNCTIONS and logits_CW.is_contiguous()


def weigh_(logits_CW: Tensor, largest_C1: Tensor, mass_C1: Tensor) -> None:
    """
    Turn logits into exp(logit - largest so far), in place; ``is_available`` and ``fits`` hold.

    Args:
        logits_CW: becomes the weights, rounded to its own precision.
        largest_C1: float32, largest logit of each row in earlier tiles, -inf before the first; takes this one in.
        mass_C1: float32, sum of exp(logit - largest) over earlier tiles; takes this one in, unrounded.
    """
    library = _library()
    assert library is not None
    assert fits(logits_CW)
    C, W = logits_CW.shape
    assert all(tensor.shape == (C, 1) and tensor.dtype == torch.float32 for tensor in (largest_C1, mass_C1))
    assert largest_C1.is_contiguous()
    assert mass_C1.is_contiguous()
    library[FUNCTIONS[logits_CW.dtype]](
        ctypes.c_void_p(logits_CW.data_ptr()),
        ctypes.c_int64(C),
        ctypes.c_int64(W),
        ctypes.c_void_p(largest_C1.data_ptr()),
        ctypes.c_void_p(mass_C1.data_ptr()),
        ctypes.c_int64(torch.get_num_threads()),
    )


@cache
def _library() -> ctypes.CDLL | None:
    library = load(SOURCE)
    if library is not None:
        for name in FUNCTIONS.values():
            library[name].restype = None
    return library
