"""Hyper-parameters of an evaluation, read from a TOML file; ``examples/evaluation.toml`` names all of them."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from models.errors import ConfigurationError, ModelError
from models.evaluation.cells import EvaluationConfig
from models.recommenders.recommender import SharedConfig, with_shared
from models.recommenders.registry import CONFIGURATIONS
from models.training.loop import TrainingConfig


def load_config(path: Path) -> EvaluationConfig:
    """
    Read hyper-parameters from TOML: tables ``training`` and ``recommender``, every key optional.

    ``recommender`` holds what several recommenders have, and each takes those of its keys that it has. A table
    ``training.NAME`` or ``recommender.NAME`` is about the trained recommender of that name alone: it overrides keys of
    the table around it, and ``recommender.NAME`` sets what only that recommender has.

    Raises:
        ConfigurationError: not TOML, an unknown table, recommender or key, or a value of the wrong type; the message
            names it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: not a readable TOML file: {error}") from error
    unknown = sorted(content.keys() - {"training", "recommender"})
    if unknown:
        raise ConfigurationError(f"{path}: unknown table {unknown[0]!r}")
    training_keys, own_training = _split_table(path, "training", content.get("training", {}))
    shared_keys, own_keys = _split_table(path, "recommender", content.get("recommender", {}))
    training = _overridden(path, TrainingConfig(), "training", training_keys)
    shared = _overridden(path, SharedConfig(), "recommender", shared_keys)
    return EvaluationConfig(
        training=training,
        schedules={
            name: _overridden(path, training, f"training.{name}", values) for name, values in own_training.items()
        },
        shared=shared,
        recommenders={
            name: _overridden(path, with_shared(CONFIGURATIONS[name], shared), f"recommender.{name}", values)
            for name, values in own_keys.items()
        },
    )


def _split_table(path: Path, table: str, content: Any) -> tuple[Any, dict[str, Any]]:
    """A table without the tables inside it, and those, which are named for trained recommenders."""
    if not isinstance(content, Mapping):
        return content, {}  # refused where its keys are read
    own = {name: values for name, values in content.items() if isinstance(values, Mapping)}
    unknown = sorted(own.keys() - CONFIGURATIONS.keys())
    if unknown:
        known = ", ".join(CONFIGURATIONS)
        raise ConfigurationError(f"{path}: unknown recommender {table}.{unknown[0]}; trained ones: {known}")
    return {key: value for key, value in content.items() if key not in own}, own


def _overridden(path: Path, defaults: Any, table: str, values: Any) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigurationError(f"{path}: {table} is not a table")
    known: dict[str, Any] = get_type_hints(type(defaults))
    if isinstance(defaults, TrainingConfig):
        del known["seed"]  # every cell has its own
    for key, value in values.items():
        if key not in known:
            raise ConfigurationError(f"{path}: unknown key {table}.{key}; known: {', '.join(known)}")
        choices = get_args(known[key])
        if choices and value not in choices:
            raise ConfigurationError(f"{path}: {table}.{key} = {value!r} is none of {', '.join(map(repr, choices))}")
        fits = bool(choices) or isinstance(value, known[key]) or (known[key] is float and isinstance(value, int))
        if not fits or isinstance(value, bool):
            raise ConfigurationError(f"{path}: {table}.{key} = {value!r} is not of type {known[key].__name__}")
    try:
        return dataclasses.replace(defaults, **values)
    except ModelError as error:
        raise ConfigurationError(f"{path}: {table}: {error}") from error
