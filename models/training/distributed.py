"""
Training by several processes that `torchrun` starts, one per device.

Each process takes its own rows of every batch, gradients are summed, and so weights stay equal. In a process that
trains alone, every function here does nothing or answers as the only process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@contextlib.contextmanager
def join_processes(device: torch.device) -> Iterator[None]:
    """
    Be one of the processes that `torchrun` started, if it did: over NCCL on CUDA, over Gloo on the CPU.

    Inside, ``torch.device("cuda")`` is the device of this process's local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def num_processes() -> int:
    """How many train together, this one counted."""
    return dist.get_world_size() if _is_joined() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _is_joined() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and reports progress."""
    return rank() == 0


def sum_gradients(module: nn.Module) -> None:
    """
    Replace every gradient by its sum over all processes; all of them have the same parameters with gradients.

    Of a gradient of rows only those rows go over the wire, from every process to every other.
    """
    if _is_joined():
        for parameter in module.parameters():
            if parameter.grad is not None:
                if parameter.grad.is_sparse:
                    parameter.grad = _sum_of_rows(parameter.grad)
                else:
                    dist.all_reduce(parameter.grad)


def _sum_of_rows(gradient_VD: Tensor) -> Tensor:
    """The sum of a gradient of rows over all processes, the same to the bit in each: added in the order of ranks."""
    gradient_VD = gradient_VD.coalesce()
    rows_1R, values_RD = gradient_VD.indices(), gradient_VD.values()
    own = torch.tensor([len(values_RD)], device=rows_1R.device)
    counts = [int(count) for count in _gathered(own)]
    # What is gathered has one shape in all processes
    missing = max(counts) - len(values_RD)
    rows = _gathered(F.pad(rows_1R, (0, missing)))
    values = _gathered(F.pad(values_RD, (0, 0, 0, missing)))
    rows_1R = torch.cat([one[:, :count] for one, count in zip(rows, counts, strict=True)], dim=1)
    values_RD = torch.cat([one[:count] for one, count in zip(values, counts, strict=True)])
    return torch.sparse_coo_tensor(rows_1R, values_RD, gradient_VD.shape, check_invariants=False).coalesce()


def _gathered(value: Tensor) -> list[Tensor]:
    """*value* of every process, in the order of ranks."""
    values = [torch.empty_like(value) for _ in range(num_processes())]
    dist.all_gather(values, value.contiguous())
    return values


def sum_over_processes(value: Tensor) -> Tensor:
    """*value* summed over all processes."""
    if _is_joined():
        value = value.clone()
        dist.all_reduce(value)
    return value


def take_from_main(value: float | None) -> float | None:
    """The main process's *value*, in every process: decisions that depend on it cannot fall differently."""
    if not _is_joined():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def wait_for_all() -> None:
    """Return once every process has come here."""
    if _is_joined():
        dist.barrier()


def _is_joined() -> bool:
    return dist.is_available() and dist.is_initialized()
