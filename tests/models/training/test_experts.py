"""What an expert starts from, what it is asked, and that the three kinds of experts are never confused."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import get_args

import pytest
import torch

from models.data.dataset import Dataset
from models.errors import ResumeMismatchError
from models.network.decoder import Decoder, DecoderConfig
from models.training.experts import Experts, train_expert
from models.training.loop import TrainingConfig
from models.training.pipeline import NetworkConfig, PipelineConfig, train_bundle

CPU = torch.device("cpu")
EXPERTS: tuple[Experts, ...] = get_args(Experts)
NO_EPOCH = TrainingConfig(max_epochs=0)
# All rows in one batch, so that the loss of the first epoch is that of the weights it starts from.
ONE_STEP = TrainingConfig(max_epochs=1, batch_size=1_000)
# Enough to rank better than the start, so that the epoch kept is a trained one.
LEARNING = TrainingConfig(learning_rate=1e-2, batch_size=16, max_epochs=5)


@pytest.fixture(scope="module")
def base(dataset: Dataset) -> Decoder:
    """Clear differences between items, and no dropout, so that a loss can be checked by hand."""
    config = DecoderConfig(
        num_items=dataset.vocabulary.num_items,
        width=16,
        inner_width=16,
        max_length=32,
        dropout=0,
        attention_dropout=0,
        init_std=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Decoder(config).eval().requires_grad_(False)


def weights_of(dataset: Dataset, base: Decoder, domain: str, experts: Experts, config: TrainingConfig) -> torch.Tensor:
    expert, _ = train_expert(dataset, base, domain, config, experts=experts)
    return torch.cat([parameter.flatten() for parameter in expert.parameters()]).detach()


def asked(sequence: list[int], domain: range, experts: Experts) -> list[tuple[list[int], int]]:
    """The definition: (history, the item to predict) of one training sequence."""
    if experts == "single-domain":
        own = [token for token in sequence if token in domain]
        return [(own[:t], own[t]) for t in range(1, len(own))]
    places = [t for t, token in enumerate(sequence) if token in domain]
    return [(sequence[: t + 1], sequence[later]) for t, later in pairwise(places)]


@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("domain", ["books", "kitchen"])
def test_the_first_loss_is_the_cross_entropy_of_what_the_expert_is_asked(
    dataset: Dataset, base: Decoder, domain: str, experts: Experts
) -> None:
    """
    - mean over (history, item) of log softmax_x(h . e_x)[item], x over the domain, one history at a time.

    Single-domain experts read histories without foreign items; the others the whole sequence up to an item of the
    domain, and predict the next of the domain.
    """
    candidates = dataset.vocabulary.token_range(domain)
    start, _ = train_expert(dataset, base, domain, NO_EPOCH, experts=experts)
    questions = [
        question
        for tokens in dataset.train
        for question in asked(tokens.tolist(), range(candidates.first, candidates.last + 1), experts)
    ]
    losses = []
    with torch.inference_mode():
        for history, item in questions:
            logits_X = start(torch.tensor([history]))[0, -1] @ start.item_embeddings_VD[candidates.columns].T
            losses.append(float(logits_X.logsumexp(0) - logits_X[item - candidates.first]))
    _, result = train_expert(dataset, base, domain, ONE_STEP, experts=experts)

    assert len(questions) > 100
    assert result.epochs[1].loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


@pytest.mark.parametrize("experts", ["adapted", "single-domain"])
def test_an_adapted_expert_starts_from_the_base_and_leaves_it_alone(
    dataset: Dataset, base: Decoder, experts: Experts
) -> None:
    before = torch.cat([parameter.flatten() for parameter in base.parameters()]).clone()

    assert torch.equal(weights_of(dataset, base, "food", experts, NO_EPOCH), before)
    assert not torch.equal(weights_of(dataset, base, "food", experts, LEARNING), before)
    assert torch.equal(torch.cat([parameter.flatten() for parameter in base.parameters()]), before)


def test_an_expert_from_scratch_holds_nothing_of_the_base_or_of_another_expert(dataset: Dataset, base: Decoder) -> None:
    """Its weights are a function of seed, domain and size alone."""
    other_base = Decoder(base.config)
    weights = weights_of(dataset, base, "food", "from-scratch", LEARNING)

    assert torch.equal(weights_of(dataset, other_base, "food", "from-scratch", LEARNING), weights)
    untrained = weights_of(dataset, base, "food", "from-scratch", NO_EPOCH)
    assert not torch.equal(weights, untrained)
    for domain, seed in (("books", NO_EPOCH.seed), ("food", NO_EPOCH.seed + 1)):
        config = dataclasses.replace(NO_EPOCH, seed=seed)
        assert not torch.equal(weights_of(dataset, base, domain, "from-scratch", config), untrained)


@pytest.mark.parametrize("experts", EXPERTS)
def test_an_expert_of_another_kind_is_not_trained_on(
    dataset: Dataset, base: Decoder, tmp_path: Path, experts: Experts
) -> None:
    file = tmp_path / "expert.safetensors"
    train_expert(dataset, base, "food", ONE_STEP, experts=experts, resume_file=file)

    for other in EXPERTS:
        if other != experts:
            with pytest.raises(ResumeMismatchError, match="belongs to another run"):
                train_expert(dataset, base, "food", ONE_STEP, experts=other, resume_file=file)


def test_every_kind_makes_a_bundle_that_says_so(dataset: Dataset, tmp_path: Path) -> None:
    """The same base, other experts, and a manifest that names the kind; adapted is the default."""
    config = PipelineConfig(
        network=NetworkConfig(width=16, inner_width=16),
        base=TrainingConfig(batch_size=16, max_epochs=1),
        expert=TrainingConfig(batch_size=16, max_epochs=1),
    )
    bundles = {
        experts: train_bundle(
            dataset,
            tmp_path / experts,
            dataclasses.replace(config, experts=experts),
            device=CPU,
            run_directory=tmp_path / f"{experts}.run",
        )
        for experts in EXPERTS
    }
    default = train_bundle(dataset, tmp_path / "default", config, device=CPU, run_directory=tmp_path / "default.run")

    assert default.version == bundles["adapted"].version
    assert len({bundle.version for bundle in bundles.values()}) == 3
    assert len({(tmp_path / experts / "base.safetensors").read_bytes() for experts in EXPERTS}) == 1
    assert {bundle.provenance["config"]["experts"] for bundle in bundles.values()} == set(EXPERTS)
