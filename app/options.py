"""What options of several commands have in common."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, TypeVar

import typer

ConfigT = TypeVar("ConfigT")

DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where to compute; auto takes CUDA when there is one: it is faster."),
]


def given(config: ConfigT, **options: Any) -> ConfigT:
    """*config* with those options that were given."""
    return dataclasses.replace(config, **{name: value for name, value in options.items() if value is not None})  # type: ignore[type-var]
