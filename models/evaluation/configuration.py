"""Hyper-parameters of an evaluation, read from TOML."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from models.errors import ConfigurationError, ModelError
from models.evaluation.cells import EvaluationConfig
from models.recommenders.registry import MULTI_DOMAIN, TRAINED
from models.training.loop import TrainingConfig


def load_config(path: Path) -> EvaluationConfig:
    """
    Read hyper-parameters from TOML: tables ``training``, ``recommender`` and ``multi_domain``, every key optional.

    A table ``training.NAME`` overrides keys of ``training`` for the trained recommender of that name alone.

    Raises:
        ConfigurationError: not TOML, an unknown table, recommender or key, or a value of the wrong type; the message
            names it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: not a readable TOML file: {error}") from error
    unknown = sorted(content.keys() - {"training", "recommender", "multi_domain"})
    if unknown:
        raise ConfigurationError(f"{path}: unknown table {unknown[0]!r}")
    config = EvaluationConfig()
    shared, own = _tables_of_recommenders(path, content.get("training", {}))
    training = _overridden(path, config.training, "training", shared)
    return EvaluationConfig(
        training=training,
        recommender=_overridden(path, config.recommender, "recommender", content.get("recommender", {})),
        multi_domain=_overridden(path, config.multi_domain, "multi_domain", content.get("multi_domain", {})),
        schedules={name: _overridden(path, training, f"training.{name}", values) for name, values in own.items()},
    )


def _tables_of_recommenders(path: Path, training: Any) -> tuple[Any, dict[str, Any]]:
    """Table ``training`` without the tables inside it, and those by recommender."""
    if not isinstance(training, Mapping):
        return training, {}  # refused where its keys are read
    own = {name: values for name, values in training.items() if isinstance(values, Mapping)}
    unknown = sorted(own.keys() - TRAINED.keys() - MULTI_DOMAIN.keys())
    if unknown:
        raise ConfigurationError(
            f"{path}: unknown recommender training.{unknown[0]}; trained ones: {', '.join((*TRAINED, *MULTI_DOMAIN))}"
        )
    return {key: value for key, value in training.items() if key not in own}, own


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
