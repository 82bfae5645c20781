"""A bundle over the prepared dataset's own items, and the composite that it makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.bundle import Bundle, save_bundle
from models.composite.folder import write_composite
from models.data.dataset import Dataset
from models.network.decoder import Decoder, DecoderConfig

TARGET = "food"


@pytest.fixture(scope="session")
def matching_bundle(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Random decoders whose logits differ clearly, over the items of ``dataset``."""
    config = DecoderConfig(
        num_items=dataset.vocabulary.num_items,
        width=16,
        inner_width=16,
        max_length=dataset.manifest["config"]["max_length"],
        init_std=0.3,
    )
    networks = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(1 + len(dataset.vocabulary.domains)):
            torch.manual_seed(seed)
            networks.append(Decoder(config).eval())
    return save_bundle(
        tmp_path_factory.mktemp("matching") / "bundle",
        vocabulary=dataset.vocabulary,
        base=networks[0],
        experts=networks[1:],
        provenance={"dataset_fingerprint": dataset.fingerprint},
    )


@pytest.fixture(scope="session")
def composite_folder(dataset: Dataset, matching_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``taesar regenerate --target food`` of ``dataset``."""
    folder = tmp_path_factory.mktemp("composite") / TARGET
    write_composite(dataset, matching_bundle, target=TARGET, rule="paper", out=folder)
    return folder
