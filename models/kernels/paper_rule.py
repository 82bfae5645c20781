"""
Rule ``paper`` compiled: the same decisions as the definition in ``decoding/paper``, at the cost of its products.

Shapes: N = positions, D = width, V = num_items + 1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from models.kernels.build import load
from models.vocabulary import TokenRange

SOURCE = Path(__file__).with_suffix(".cpp")


class Decisions(NamedTuple):
    """
    What happens to each of N source items; every field has shape [N].

    Args:
        token_ids_N: int64, the replacing token of the target domain, or 0: deleted.
        alpha_N: weight of the target expert in the deciding step (rule ``paper``: the local step where there was
            one, else the global; ``without-sde``: 0; reference rules: at the winning item).
        beta_N: weight of the contrast, likewise.
        score_N: the winning score of the deciding step.
        margin_N: its lead over the runner-up's in the same step, >= 0; infinite when there is one candidate only. Of
            a replaced item it says how clear the choice among target items was, not how clear it was to replace it.
    """

    token_ids_N: Tensor
    alpha_N: Tensor
    beta_N: Tensor
    score_N: Tensor
    margin_N: Tensor


class SourceGroup(NamedTuple):
    """A source domain in a call: its expert's item table [V, D], and how many positions are of this domain."""

    table_VD: Tensor
    num_positions: int


def is_available() -> bool:
    """Whether the kernel is compiled here; the first call compiles it, a matter of seconds."""
    return loaded_library() is not None


def fits(*tensors: Tensor) -> bool:
    """Whether the kernel reads such tensors: float32 in the CPU's memory."""
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def decide_paper(
    hidden_3ND: Sequence[Tensor], shared_2VD: Sequence[Tensor], sources: Sequence[SourceGroup], target_range: TokenRange
) -> Decisions:
    """
    Decide N positions by rule ``paper``; ``is_available`` and ``fits`` hold.

    Args:
        hidden_3ND: hidden states of target expert, base and source experts, [N, D] each.
        shared_2VD: item tables [V, D] of target expert and base; row 0 is padding and no candidate.
        sources: the source domains of the positions, one after the other, N positions in all.
        target_range: the target domain's tokens.

    Returns:
        The decisions of ``contrastive.decide_in_blocks`` up to float32 rounding; a position's bits depend on nothing
        but the position.

    Raises:
        MemoryError: no room for the logits, per thread 3 V x 16 floats (8 without AVX-512) of every panel that shares a
            reading of the tables: up to eight in 96 MB, two if they need more.
    """
    library = loaded_library()
    assert library is not None
    tables = [table.contiguous() for table in (*shared_2VD, *(source.table_VD for source in sources))]
    hidden = [tensor.contiguous() for tensor in hidden_3ND]
    assert fits(*hidden, *tables)
    N, D = hidden[0].shape
    V = len(tables[0])
    stops = list(accumulate(source.num_positions for source in sources))
    assert stops[-1:] == [N]
    assert all(tensor.shape == (N, D) for tensor in hidden)
    assert all(table.shape == (V, D) for table in tables)
    assert 1 <= target_range.first <= target_range.last < V
    token_ids_N = torch.empty(N, dtype=torch.int64)
    weights = [torch.empty(N) for _ in range(4)]
    source_tables = (ctypes.c_void_p * len(sources))(*(table.data_ptr() for table in tables[2:]))
    sizes = (len(sources), D, V, target_range.first, target_range.last, torch.get_num_threads())
    status = library.taesar_decide_paper(
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (*hidden, *tables[:2])),
        source_tables,
        (ctypes.c_int64 * len(stops))(*stops),
        *(ctypes.c_int64(size) for size in sizes),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (token_ids_N, *weights)),
    )
    if status != 0:
        raise MemoryError(f"no memory to decide {N} positions over {V} tokens")
    return Decisions(token_ids_N, *weights)


@cache
def loaded_library() -> ctypes.CDLL | None:
    """The compiled library, None where it cannot be compiled; ``loaded_library.cache_clear`` has it asked for anew."""
    library = load(SOURCE)
    if library is not None:
        library.taesar_decide_paper.restype = ctypes.c_int
    return library
