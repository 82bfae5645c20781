"""A bundle that goes on: what it knew stays, new items start among their neighbours, and only an heir may."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle, save_bundle
from models.data.dataset import Dataset, load_dataset
from models.data.preparation import PreparationConfig, prepare
from models.errors import BundleMismatchError
from models.training.base import train_base
from models.training.continuation import NEW_READINGS, Continuation
from models.training.pipeline import NetworkConfig, PipelineConfig, refreshed, train_bundle
from tests.conftest import random_decoder, write_interactions

LOOSE = PreparationConfig(overlap="any")
SMALL = NetworkConfig(width=16, inner_width=16, num_layers=1)


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """Yesterday's log, and today's with an item that is always bought between food-03 and food-04."""
    folder = tmp_path_factory.mktemp("days")
    rows = write_interactions(folder / "log.csv").read_text(encoding="utf-8").splitlines()
    new = [rows[0]]
    for user in range(12):
        new += [
            f"u{user:03d},{item},food,{2_000 + place}" for place, item in enumerate(("food-03", "fresh", "food-04"))
        ]
        new += [f"u{user:03d},kitchen-01,kitchen,{2_010 + place}" for place in range(2)]
    (folder / "new.csv").write_text("\n".join(new) + "\n", encoding="utf-8")
    prepare(folder / "log.csv", folder / "yesterday", LOOSE)
    prepare(folder / "new.csv", folder / "today", extend=folder / "yesterday")
    return load_dataset(folder / "yesterday"), load_dataset(folder / "today")


def bundle_of(dataset: Dataset, folder: Path, **provenance: object) -> Bundle:
    networks = [random_decoder(dataset.vocabulary.num_items, seed, max_length=128) for seed in range(4)]
    return save_bundle(
        folder,
        vocabulary=dataset.vocabulary,
        base=networks[0],
        experts=networks[1:],
        provenance={"dataset_fingerprint": dataset.fingerprint, **provenance},
    )


def test_known_items_keep_their_rows_wherever_their_tokens_moved(days, tmp_path) -> None:
    yesterday, today = days
    bundle = bundle_of(yesterday, tmp_path / "bundle")
    grown = Continuation.of(bundle, today).base
    for domain, items in zip(yesterday.vocabulary.domains, yesterday.vocabulary.item_ids, strict=True):
        before = [yesterday.vocabulary.token_id(domain, item) for item in items]
        after = [today.vocabulary.token_id(domain, item) for item in items]

        assert torch.equal(grown.item_embeddings_VD[after], bundle.base.item_embeddings_VD[before])


def test_a_new_item_starts_as_the_mean_of_the_known_items_beside_it(days, tmp_path) -> None:
    yesterday, today = days
    bundle = bundle_of(yesterday, tmp_path / "bundle")
    fresh = today.vocabulary.token_id("food", "fresh")
    beside = [
        int(row[place + offset])
        for row in today.train
        for place in np.flatnonzero(row == fresh).tolist()
        for offset in (-3, -2, -1, 1, 2, 3)
        if 0 <= place + offset < len(row) and row[place + offset] != fresh
    ]
    grown = Continuation.of(bundle, today).base
    expected = grown.item_embeddings_VD[beside].mean(dim=0)

    assert len(beside) > 12
    torch.testing.assert_close(grown.item_embeddings_VD[fresh], expected)


def test_a_history_of_known_items_is_read_as_before(days, tmp_path) -> None:
    yesterday, today = days
    bundle = bundle_of(yesterday, tmp_path / "bundle")
    grown = Continuation.of(bundle, today).base
    items = [("food", "food-03"), ("kitchen", "kitchen-07")]
    before = torch.tensor([[yesterday.vocabulary.token_id(*item) for item in items]])
    after = torch.tensor([[today.vocabulary.token_id(*item) for item in items]])

    assert torch.equal(grown(after), bundle.base(before))


def test_a_bundle_of_a_dataset_that_is_no_ancestor_is_refused(days, tmp_path) -> None:
    """It may have learned from what is held out here."""
    yesterday, today = days
    stranger = dataclasses.replace(yesterday, fingerprint="another")

    with pytest.raises(BundleMismatchError, match="does not extend"):
        Continuation.of(bundle_of(stranger, tmp_path / "bundle"), today)


def test_a_refit_bundle_is_refused_as_it_has_seen_held_out_items(days, tmp_path) -> None:
    yesterday, today = days

    with pytest.raises(BundleMismatchError, match="held-out items"):
        Continuation.of(bundle_of(yesterday, tmp_path / "bundle", refit=True), today)


def test_a_refresh_begins_where_the_last_bundle_ended_and_says_where_it_came_from(days, tmp_path) -> None:
    """Epoch 0 of the base ranks as the last bundle does, better than a network from nothing; experts begin at it."""
    yesterday, today = days
    config = PipelineConfig(network=SMALL)
    brief = dataclasses.replace(
        config,
        base=dataclasses.replace(config.base, max_epochs=30, learning_rate=5e-3),
        expert=dataclasses.replace(config.expert, max_epochs=2),
    )
    device = torch.device("cpu")
    first = train_bundle(yesterday, tmp_path / "first", brief, device=device, run_directory=tmp_path / "run-1")
    refresh = dataclasses.replace(config, base=refreshed(config.base, 1), expert=refreshed(config.expert, 0))
    second = train_bundle(
        today, tmp_path / "second", refresh, device=device, run_directory=tmp_path / "run-2", init=first
    )
    cold = first.provenance["base"]["epochs"][0]["validation_ndcg_at_10"]
    warm = second.provenance["base"]["epochs"][0]["validation_ndcg_at_10"]

    assert warm > 2 * cold
    for domain in today.vocabulary.domains:
        assert torch.equal(second.expert(domain).item_embeddings_VD, second.base.item_embeddings_VD)
    assert second.provenance["init"]["version"] == first.version
    assert second.provenance["init"]["ancestors"] == [first.version]
    assert second.provenance["dataset"]["extends"][0]["fingerprint"] == yesterday.fingerprint


def test_every_sequence_is_read_once_and_what_is_new_in_it_several_times_more(days, tmp_path) -> None:
    """New are what the former dataset did not train on: rows of today, and the two items of a user held out before."""
    yesterday, today = days
    numbers = np.arange(len(today.train))
    rows, first_asked = Continuation.of(bundle_of(yesterday, tmp_path / "bundle"), today).readings(numbers)
    known = dict(zip(yesterday.user_ids, yesterday.train.lengths.tolist(), strict=True))
    changed = {
        number: known.get(user, 0)
        for number, user in enumerate(today.user_ids)
        if today.train.lengths[number] > known.get(user, 0)
    }

    assert len(changed) == 12
    assert rows[: len(numbers)].tolist() == numbers.tolist()
    assert not first_asked[: len(numbers)].any()
    again = list(zip(rows[len(numbers) :].tolist(), first_asked[len(numbers) :].tolist(), strict=True))
    assert sorted(again) == sorted(NEW_READINGS * list(changed.items()))


def test_on_the_dataset_that_the_bundle_was_trained_on_nothing_is_new(days, tmp_path) -> None:
    _, today = days
    numbers = np.arange(len(today.train))
    rows, first_asked = Continuation.of(bundle_of(today, tmp_path / "bundle"), today).readings(numbers)

    assert rows.tolist() == numbers.tolist()
    assert not first_asked.any()


def test_a_refresh_keeps_the_base_that_read_what_is_new(days, tmp_path) -> None:
    """Few validation items are new, so validation might prefer yesterday's base, which knows none of them."""
    yesterday, today = days
    harmful = dataclasses.replace(refreshed(PipelineConfig().base, 1), learning_rate=10.0)
    continuation = Continuation.of(bundle_of(yesterday, tmp_path / "bundle"), today)
    base, result = train_base(
        today, SMALL.decoder_for(today), harmful, device=torch.device("cpu"), continuation=continuation
    )
    before, after = (report.metric for report in result.epochs)

    assert after < before
    assert result.best_epoch == 1
    assert not torch.equal(base.item_embeddings_VD, continuation.base.item_embeddings_VD)
