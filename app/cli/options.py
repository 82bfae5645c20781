"""What options of several commands have in common."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from models.decoding.rules import Dial, Rule, describe_rules

if TYPE_CHECKING:
    from app.settings import Settings

ConfigT = TypeVar("ConfigT")

DeviceOption = Annotated[
    Literal["auto", "cpu", "cuda"],
    typer.Option(help="Where to compute; auto takes CUDA when there is one: it is faster."),
]


RuleOption = Annotated[
    Rule,
    typer.Option(
        "--rule",
        "--recipe",
        help=describe_rules(),
    ),
]


DialOption = Annotated[
    Dial,
    typer.Option(
        help="auto: leave undone what the bundle's trial on validation found to be of no use for the target, which was "
        "made with rule anticipate and is kept to by no other; all: replace everything."
    ),
]


JobsOption = Annotated[
    int,
    typer.Option(
        min=1,
        help="How many cells train at once, each with its share of the cores; what they find is the same with any "
        "number.",
    ),
]


class SettingsError(Exception):
    """A setting of the service is out of its range or contradicts another."""


def read_settings(**options: Any) -> Settings:
    """
    The settings of the environment, with those options that were given.

    Raises:
        SettingsError: one of them cannot be used.
    """
    from pydantic import ValidationError

    from app.settings import Settings, unknown_settings

    # A misspelt setting would be left out in silence, a misspelt key leave the service open
    if unknown := unknown_settings(os.environ):
        raise SettingsError("; ".join(unknown))
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(
            "; ".join(f"{_setting_of(found['loc'])}: {found['msg']}" for found in error.errors())
        ) from error


def say_starting(settings: Settings, what: str) -> None:
    """A first line of the log, before what takes seconds to load."""
    from app.runtime.logs import configure_logging, logger

    configure_logging(settings.log_level)
    logger(__name__).info("starting", command=what)


def override(config: ConfigT, **options: Any) -> ConfigT:
    """*config* with those options that were given."""
    return dataclasses.replace(config, **{name: value for name, value in options.items() if value is not None})  # type: ignore[type-var]


def choices(option: str, chosen: str, known: Collection[str]) -> tuple[str, ...]:
    """
    The names of a comma-separated *chosen*, each once.

    Raises:
        typer.BadParameter: one of them is none of *known*, or there is none.
    """
    names = tuple(dict.fromkeys(name.strip() for name in chosen.split(",") if name.strip()))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise typer.BadParameter(f"{option}: {', '.join(unknown) or 'nothing'} is none of {', '.join(known)}")
    return names


def _setting_of(location: tuple[str | int, ...]) -> str:
    """The variable that a validation error is about; errors about several settings name them in their message."""
    return f"TAESAR_{str(location[0]).upper()}" if location else "settings"
