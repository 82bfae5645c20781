"""
Rule ``paper`` compiled: the same decisions as the definition in ``contrastive``, at the cost of its products.

Shapes: N = positions, D = width, V = num_items + 1.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from models.kernels.build import build
from models.vocabulary import TokenRange

LOG = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".cpp")


class Decided(NamedTuple):
    """Token (0: deleted), alpha, beta, score and margin of every position; see ``contrastive.Decisions``."""

    token_ids_N: Tensor
    alpha_N: Tensor
    beta_N: Tensor
    score_N: Tensor
    margin_N: Tensor


def is_available() -> bool:
    """Whether the kernel is compiled here; the first call compiles it, a matter of seconds."""
    return _library() is not None


def fits(*tensors: Tensor) -> bool:
    """Whether the kernel reads such tensors: float32 in the CPU's memory."""
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def decide_paper(hidden_3ND: list[Tensor], tables_3VD: list[Tensor], target_range: TokenRange) -> Decided:
    """
    Decide N positions by rule ``paper``; ``is_available`` and ``fits`` hold.

    Args:
        hidden_3ND: hidden states of target expert, base and source expert, [N, D] each.
        tables_3VD: their item tables, [V, D] each; row 0 is padding and no candidate.
        target_range: the target domain's tokens.

    Returns:
        The decisions of ``contrastive.decide_in_blocks`` up to float32 rounding; a position's bits depend on nothing
        but the position.

    Raises:
        MemoryError: no room for the logits of one block, 3 V x 32 floats per thread.
    """
    library = _library()
    assert library is not None
    assert fits(*hidden_3ND, *tables_3VD)
    N, D = hidden_3ND[0].shape
    V = len(tables_3VD[0])
    assert all(hidden.shape == (N, D) for hidden in hidden_3ND)
    assert all(table.shape == (V, D) for table in tables_3VD)
    assert 1 <= target_range.first <= target_range.last < V
    inputs = [tensor.contiguous() for tensor in (*hidden_3ND, *tables_3VD)]
    token_ids_N = torch.empty(N, dtype=torch.int64)
    weights = [torch.empty(N) for _ in range(4)]
    sizes = (N, D, V, target_range.first, target_range.last, torch.get_num_threads())
    status = library.taesar_decide_paper(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in inputs),
        *(ctypes.c_int64(size) for size in sizes),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (token_ids_N, *weights)),
    )
    if status != 0:
        raise MemoryError(f"no memory to decide {N} positions over {V} tokens")
    return Decided(token_ids_N, *weights)


@cache
def _library() -> ctypes.CDLL | None:
    path = build(SOURCE)
    if path is None:
        return None
    try:
        library = ctypes.CDLL(str(path))  # lets go of the interpreter's lock during calls
    except OSError as error:
        LOG.warning("%s does not load: %s", path, error)
        return None
    library.taesar_decide_paper.restype = ctypes.c_int
    return library
