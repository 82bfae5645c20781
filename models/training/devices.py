"""The device that networks run on, and the precision of their matrix products."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from models.errors import TrainingError

Precision = Literal["auto", "float32", "bfloat16"]


def resolve_device(name: str) -> torch.device:
    """
    ``auto`` (CUDA if there is one, else CPU), ``cpu``, ``cuda`` or ``cuda:N`` as a device.

    Raises:
        TrainingError: CUDA was asked for and is not there, or the name is unknown.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise TrainingError(f"unknown device {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TrainingError("device cuda asked for, but torch finds no CUDA device")
    return device


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    if product_precision(device, precision) == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def product_precision(device: torch.device, precision: Precision) -> Precision:
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return precision
