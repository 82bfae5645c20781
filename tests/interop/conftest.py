"""
The other libraries, imported once.

Everything here skips where they are not installed. Their own warnings are not ours to fix, so they are silenced while
they are imported and in every test of this folder.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks.bench_recbole import import_recbole
from models.bundle import save_bundle
from models.composite.folder import write_composite
from models.network.decoder import Decoder, DecoderConfig


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def recbole():
    """The package, with its sequential models, trainer and metrics importable."""
    if find_spec("recbole") is None:
        pytest.skip("RecBole is not installed: make interop installs it")
    with warnings.catch_warnings():
        return import_recbole()


@pytest.fixture(scope="session")
def composite_folder(dataset, tmp_path_factory) -> Path:
    """``taesar regenerate --target food --export recbole,rectools,replay``, of the small prepared dataset."""
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
    write_composite(
        dataset, bundle, target="food", rule="paper", out=folder / "food", exports=("recbole", "rectools", "replay")
    )
    return folder / "food"
