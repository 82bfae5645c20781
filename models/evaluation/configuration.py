"""
Hyper-parameters of an evaluation: what validation chose, and what a TOML file says instead.

``examples/tuned.toml`` writes the former out; ``examples/evaluation.toml`` names every key with the released code's
value.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from models.errors import ConfigurationError, ModelError
from models.evaluation.budgets import EvaluationConfig
from models.files import replace_file
from models.recommenders.recommender import SharedConfig, with_shared
from models.recommenders.registry import CONFIGURATIONS
from models.training.devices import Precision
from models.training.loop import TrainingConfig

Tables = Mapping[str, Any]
# Of no file but of validation items (docs/experiments/recommender-schedules.md, two-readings.md), with schedules that
# find their own length: a number of epochs that was right for one table turned a gain into a loss on another.
TUNED: Mapping[str, Tables] = {
    "training": {
        "learning_rate": 1e-3,
        "batch_size": 32,
        "max_epochs": 100,
        "patience": 2,
        "schedule": "plateau",
        # It learns best in large steps at a high rate, with a running average of some nine epochs' weights.
        "gru4rec": {
            "learning_rate": 2e-2,
            "batch_size": 128,
            "max_epochs": 300,
            "patience": 10,
            "schedule": "constant",
            "average_decay": 0.998,
        },
        "cl4srec": {"learning_rate": 2e-3, "batch_size": 128},
        "gcegnn": {"learning_rate": 2e-3, "batch_size": 128, "patience": 3},
        # As with its authors; 2 to 10 % better on nine targets (docs/experiments/weight-decay.md).
        "abxi": {"weight_decay": 1.0},
    },
    "recommender": {
        "dropout": 0.5,
        # Near the root of the width: at 1 the contrastive loss of layer-normalised states outweighs the cross-entropy.
        "cl4srec": {"temperature": 12.0},
        "gcegnn": {"dropout_local": 0.5},
    },
}


def tuned_config() -> EvaluationConfig:
    """The hyper-parameters with which recommenders learned best on validation items: the defaults of ``evaluate``."""
    return _config_of("the defaults", {})


def load_config(path: Path) -> EvaluationConfig:
    """
    Read hyper-parameters from TOML: tables ``training`` and ``recommender``, every key optional.

    ``recommender`` holds what several recommenders have, and each takes those of its keys that it has. A table
    ``training.NAME`` or ``recommender.NAME`` is about the trained recommender of that name alone: it overrides keys of
    the table around it, and ``recommender.NAME`` sets what only that recommender has. What the file says holds for
    every recommender that it is about; what it does not say is as in ``TUNED``.

    Raises:
        ConfigurationError: not TOML, an unknown table, recommender or key, or a value of the wrong type; the message
            names it.
    """
    return _config_of(str(path), _read(path))


def write_config(path: Path, start: Path | None, found: Iterable[Tables]) -> None:
    """Write the TOML file *start*, or an empty one, with the tables of *found* put into it."""
    tables: dict[str, dict[str, Any]] = {} if start is None else _read(start)
    for one in found:
        for table, own in one.items():
            for name, values in own.items():
                keys = tables.setdefault(table, {})
                keys[name] = {**keys.get(name, {}), **values}
    blocks = []
    for table, keys in tables.items():
        plain = {key: value for key, value in keys.items() if not isinstance(value, Mapping)}
        own = {f"{table}.{key}": value for key, value in keys.items() if isinstance(value, Mapping)}
        blocks += [(name, values) for name, values in ({table: plain} | own).items() if values]
    # A number or a text is written in TOML as in JSON.
    lines = [
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())
        for name, values in blocks
    ]
    with replace_file(path) as partial:
        partial.write_text("\n".join(lines), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: not a readable TOML file: {error}") from error


def with_epochs(config: EvaluationConfig, most: int) -> EvaluationConfig:
    """*config* with at most so many epochs for every recommender."""
    return dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, max_epochs=most),
        schedules={name: dataclasses.replace(one, max_epochs=most) for name, one in config.schedules.items()},
    )


def with_precision(config: EvaluationConfig, precision: Precision) -> EvaluationConfig:
    """*config* with products of that precision for every recommender."""
    return dataclasses.replace(
        config,
        training=dataclasses.replace(config.training, precision=precision),
        schedules={name: dataclasses.replace(one, precision=precision) for name, one in config.schedules.items()},
    )


def _config_of(path: str, content: Tables) -> EvaluationConfig:
    unknown = sorted(content.keys() - TUNED.keys())
    if unknown:
        raise ConfigurationError(f"{path}: unknown table {unknown[0]!r}")
    training_keys, own_training = _merged(path, "training", content.get("training", {}))
    shared_keys, own_keys = _merged(path, "recommender", content.get("recommender", {}))
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


def _merged(path: str, table: str, content: Any) -> tuple[Any, dict[str, Any]]:
    """
    The keys of a table and those of the tables inside it, ``TUNED`` where the file is silent.

    What a file says of all recommenders goes before what ``TUNED`` says of one.
    """
    keys, own = _split_table(path, table, content)
    tuned_keys, tuned_own = _split_table(path, table, TUNED[table])
    if not isinstance(keys, Mapping):
        return keys, own  # refused where its keys are read
    for name, values in tuned_own.items():
        own[name] = {key: value for key, value in values.items() if key not in keys} | own.get(name, {})
    return {**tuned_keys, **keys}, own


def _split_table(path: str, table: str, content: Any) -> tuple[Any, dict[str, Any]]:
    """A table without the tables inside it, and those, which are named for trained recommenders."""
    if not isinstance(content, Mapping):
        return content, {}  # refused where its keys are read
    own = {name: values for name, values in content.items() if isinstance(values, Mapping)}
    unknown = sorted(own.keys() - CONFIGURATIONS.keys())
    if unknown:
        known = ", ".join(CONFIGURATIONS)
        raise ConfigurationError(f"{path}: unknown recommender {table}.{unknown[0]}; trained ones: {known}")
    return {key: value for key, value in content.items() if key not in own}, own


def _overridden(path: str, defaults: Any, table: str, values: Any) -> Any:
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
