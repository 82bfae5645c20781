"""The gate of a refreshed bundle: what is worse for certain, or harms for certain, does not get through."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from models.bundle import Bundle
from models.check.gate import failures, judge_refresh
from models.data.dataset import Dataset
from models.errors import BundleMismatchError
from models.training.pipeline import NetworkConfig, PipelineConfig, train_bundle
from models.tuning import Guard, TargetTuning

SMALL = NetworkConfig(width=16, inner_width=16, num_layers=1)


def trained(dataset: Dataset, folder: Path, epochs: int) -> Bundle:
    config = PipelineConfig(network=SMALL)
    config = dataclasses.replace(
        config,
        base=dataclasses.replace(config.base, max_epochs=epochs, learning_rate=5e-3),
        expert=dataclasses.replace(config.expert, max_epochs=min(epochs, 2)),
    )
    return train_bundle(dataset, folder / "bundle", config, device=torch.device("cpu"), run_directory=folder / "run")


def guarded(bundle: Bundle, hints: int) -> Bundle:
    """The bundle with so many hints a run for every target, in memory."""
    tuning = TargetTuning(guard=Guard(hints, hints, "chosen here"))
    return dataclasses.replace(bundle, tunings=(tuning,) * len(bundle.vocabulary.domains))


@pytest.fixture(scope="module")
def good(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Has learned that the next item's number follows the last one's."""
    return guarded(trained(dataset, tmp_path_factory.mktemp("good"), 30), 0)


@pytest.fixture(scope="module")
def bad(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Has learned nothing."""
    return guarded(trained(dataset, tmp_path_factory.mktemp("bad"), 0), 0)


def test_a_bundle_is_no_worse_than_itself(dataset, good) -> None:
    findings = judge_refresh(dataset, good, good)

    assert list(failures(findings)) == []
    assert len(findings) == 2 * len(dataset.vocabulary.domains)


def test_a_bundle_that_ranks_worse_for_certain_is_kept_out(dataset, good, bad) -> None:
    reasons = list(failures(judge_refresh(dataset, bad, good)))

    assert reasons
    assert all(f"WORSE than that of bundle {good.version}" in reason for reason in reasons)


def test_a_bundle_that_ranks_better_gets_through(dataset, good, bad) -> None:
    assert list(failures(judge_refresh(dataset, good, bad))) == []


def test_regeneration_at_random_is_kept_out_as_harm(dataset, bad) -> None:
    """Hints of a network that knows nothing spoil what a Markov chain would rank by: the last item."""
    reasons = list(failures(judge_refresh(dataset, guarded(bad, 3), None)))

    assert reasons
    assert all("regeneration HARMS" in reason for reason in reasons)


def test_what_the_guard_leaves_undone_harms_nobody(dataset, bad) -> None:
    findings = judge_refresh(dataset, bad, None)

    assert {finding.sentence for finding in findings} == {
        f"{domain}: nothing is replaced, which harms nobody" for domain in dataset.vocabulary.domains
    }


def test_a_bundle_of_other_data_cannot_be_compared_with(dataset, good) -> None:
    stranger = dataclasses.replace(good, provenance={"dataset_fingerprint": "another"})

    with pytest.raises(BundleMismatchError, match="does not extend"):
        judge_refresh(dataset, good, stranger)
