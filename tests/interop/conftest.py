"""
The other libraries, imported once, with what they need to run on current NumPy and without TensorBoard.

Everything here skips where they are not installed. Their own warnings are not ours to fix, so they are silenced while
they are imported and in every test of this folder.
"""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import save_bundle
from models.composite import write_composite
from models.decoder import Decoder, DecoderConfig

# Names that NumPy removed and RecBole 1.2.1 still uses.
REMOVED_FROM_NUMPY = {
    "float": float,
    "int": int,
    "bool": bool,
    "object": object,
    "bool8": np.bool_,
    "float_": np.float64,
    "complex_": np.complex128,
    "unicode_": np.str_,
}


class DeafBoard:
    """A TensorBoard that takes every call and keeps nothing."""

    def __init__(self, *_args, **_options):
        pass

    def __getattr__(self, name):
        return lambda *_args, **_options: None


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def recbole():
    """The package, with its sequential models, trainer and metrics importable."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in REMOVED_FROM_NUMPY.items():
            if name not in np.__dict__:
                setattr(np, name, value)
        board = types.ModuleType("torch.utils.tensorboard")
        board.SummaryWriter = DeafBoard
        sys.modules.setdefault("torch.utils.tensorboard", board)
        package = pytest.importorskip("recbole")
        for module in (
            "config",
            "data",
            "evaluator.collector",
            "evaluator.metrics",
            "model.sequential_recommender.gru4rec",
            "model.sequential_recommender.sasrec",
            "trainer",
        ):
            pytest.importorskip(f"recbole.{module}")
        return package


@pytest.fixture(scope="session")
def composite_folder(dataset, tmp_path_factory) -> Path:
    """``taesar regenerate --target food``: a composite of the small prepared dataset."""
    config = DecoderConfig(num_items=dataset.vocabulary.num_items, width=16, inner_width=16, init_std=0.3)
    folder = tmp_path_factory.mktemp("interop")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = [Decoder(config).eval() for _ in range(1 + len(dataset.vocabulary.domains))]
    bundle = save_bundle(
        folder / "bundle",
        vocabulary=dataset.vocabulary,
        base=networks[0],
        experts=networks[1:],
        provenance={"dataset_fingerprint": dataset.fingerprint},
    )
    write_composite(dataset, bundle, target="food", rule="paper", out=folder / "food")
    return folder / "food"
