"""What training takes of memory, told before it begins."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.data.dataset import Dataset
from models.errors import TrainingError
from models.network.decoder import Decoder, DecoderConfig
from models.training import training_forecast
from models.training.pipeline import NetworkConfig, PipelineConfig, train_bundle
from models.training.training_forecast import TrainingForecast

MILLION = DecoderConfig(num_items=1_000_000)


def test_it_knows_how_many_weights_a_network_has() -> None:
    config = DecoderConfig(num_items=50, width=16, inner_width=24, max_length=9)
    expected = sum(parameter.numel() for parameter in Decoder(config).parameters())

    assert TrainingForecast.of(config, 2, sampled_softmax=False).num_weights == expected


def test_each_domain_is_a_copy_and_gradients_of_rows_are_none() -> None:
    """A table of a million items of width 128 is 512 MB."""
    two = TrainingForecast.of(MILLION, 2, sampled_softmax=False)
    three = TrainingForecast.of(MILLION, 3, sampled_softmax=False)
    by_rows = TrainingForecast.of(MILLION, 2, sampled_softmax=True)

    assert three.num_bytes - two.num_bytes == pytest.approx(512e6, rel=0.01)
    assert two.num_bytes - by_rows.num_bytes == pytest.approx(2 * 512e6, rel=0.01)


def test_what_does_not_fit_is_refused_before_it_begins(
    dataset: Dataset, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_forecast, "available_bytes", lambda: 900_000_000)
    config = dataclasses.replace(PipelineConfig(), network=NetworkConfig(width=4096, inner_width=4096))
    with pytest.raises(
        TrainingError, match=r"need .* GB of memory at least, and 900 MB are free: take a smaller --width"
    ):
        train_bundle(dataset, tmp_path / "bundle", config, device=torch.device("cpu"), run_directory=tmp_path / "run")

    assert not (tmp_path / "run").exists()
