"""
Adam, or AdamW where weights are to decay; of an item table whose gradient names few rows, Adam of those rows alone.

A sampled softmax gives a gradient to the rows that its step reads: the sequences' items and the items drawn, some ten
thousand. Adam of the whole table reads and writes four tables of the vocabulary's size all the same, which at a
million items takes longer than the loss and its gradients. So such a table (``Embedding.sparse``) is stepped by
``torch.optim.SparseAdam``: a row without a gradient stays as it is, and so do its moments. For rows that have a
gradient in every step it is Adam up to rounding; a rare row's last gradients push it once, not again in the
steps that do not read it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.errors import TrainingError


class Optimiser:
    """
    Adam of every weight of *module*.

    Args:
        module: on its device; its ``nn.Embedding`` with ``sparse`` have gradients of rows.
        learning_rate: of the first step.
        weight_decay: every step takes its rate times this share off every weight before it goes on (AdamW), >= 0.

    Raises:
        TrainingError: there are gradients of rows and weights are to decay, which would take steps on the whole table.
    """

    def __init__(self, module: nn.Module, learning_rate: float, weight_decay: float = 0.0) -> None:
        rows = row_tables(module)
        if rows and weight_decay:
            raise TrainingError("weight_decay: of an item table that is stepped row by row, weights cannot decay")
        dense = [one for one in module.parameters() if all(one is not table for table in rows)]
        self._parts: dict[str, torch.optim.Optimizer] = {}
        if dense:
            self._parts["adam"] = torch.optim.AdamW(dense, lr=learning_rate, weight_decay=weight_decay, fused=True)
        if rows:
            self._parts["rows"] = torch.optim.SparseAdam(rows, lr=learning_rate)

    def step(self, learning_rate: float) -> None:
        """Step by the gradients there are."""
        for part in self._parts.values():
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts.values():
            part.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Moments and numbers of steps, by names that ``load_state_tensors`` knows."""
        return {
            f"{name}.{index}.{slot}": torch.as_tensor(value)
            for name, part in self._parts.items()
            for index, slots in part.state_dict()["state"].items()
            for slot, value in slots.items()
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from ``state_tensors``; names of others are left alone."""
        for name, part in self._parts.items():
            state: dict[int, dict[str, Tensor | int]] = {}
            for key, value in tensors.items():
                kind, _, place = key.partition(".")
                if kind == name:
                    index, slot = place.split(".", 1)
                    # SparseAdam counts its steps in a Python number, and rounds otherwise with a tensor
                    is_count = name == "rows" and slot == "step"
                    state.setdefault(int(index), {})[slot] = int(value) if is_count else value
            part.load_state_dict({**part.state_dict(), "state": state})


def row_tables(module: nn.Module) -> list[Tensor]:
    """The tables of *module* whose gradients are of rows."""
    return [one.weight for one in module.modules() if isinstance(one, nn.Embedding) and one.sparse]
