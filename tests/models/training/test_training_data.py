"""What training reads from a file is what a dataset in memory holds, and it is not held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from models.data.dataset import TOKENS, Dataset, Sequences, describe_dataset, load_dataset
from models.data.preparation import PreparationConfig, prepare
from models.errors import TrainingError
from models.training import continuation, objective, training_data
from models.training.continuation import Continuation
from models.training.loop import TrainingConfig
from models.training.objective import choose_held_out
from models.training.pipeline import NetworkConfig, PipelineConfig, train_bundle
from models.training.training_data import StoredData, undivided
from models.vocabulary import TokenRange, Vocabulary
from tests.conftest import write_interactions

CPU = torch.device("cpu")
SHORT = TrainingConfig(learning_rate=5e-3, batch_size=16, max_epochs=3)
CONFIG = PipelineConfig(network=NetworkConfig(width=16, inner_width=16), base=SHORT, expert=SHORT, refit=True)


@pytest.fixture(scope="module", params=["last two", "time"])
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """One of each split; in a split by time many users have no validation item."""
    folder = tmp_path_factory.mktemp("prepared")
    config = PreparationConfig() if request.param == "last two" else PreparationConfig(split="time")
    prepare(write_interactions(folder / "log.csv"), folder / "data", config)
    return load_dataset(folder / "data")


@pytest.mark.parametrize("users_at_once", [1, 7, 1 << 17])
def test_the_file_holds_what_the_dataset_holds(
    prepared: Dataset, tmp_path: Path, users_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_data, "RANGE_USERS", users_at_once)
    stored = StoredData.of(describe_dataset(prepared.directory), tmp_path)

    for data, expected in ((stored, prepared), (undivided(stored), undivided(prepared))):
        assert [one.tolist() for one in data.train] == [one.tolist() for one in expected.train]
        assert data.validation.tolist() == expected.validation.tolist()
        assert (data.fingerprint, data.vocabulary) == (expected.fingerprint, expected.vocabulary)
        assert not data.train.token_ids.flags.writeable
        assert not data.train.token_ids.flags.owndata
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_the_same_from_either(dataset: Dataset, tmp_path: Path) -> None:
    """Trained, and refit on everything: weights equal to the bit."""
    stored = StoredData.of(describe_dataset(dataset.directory), tmp_path)

    versions = {}
    for name, data in (("held", dataset), ("stored", stored)):
        first = train_bundle(data, tmp_path / name, CONFIG, device=CPU, run_directory=tmp_path / f"{name}.run")
        versions[name] = first.version

    assert versions["stored"] == versions["held"]


def test_a_full_disk_is_said_with_what_is_needed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Path("/dev/full").open("w+b")  # noqa: SIM115 - what writes to it closes it
    monkeypatch.setattr(training_data.tempfile, "TemporaryFile", lambda **_: full)
    with pytest.raises(TrainingError, match="4 bytes an item: No space left on device"):
        StoredData.of(describe_dataset(dataset.directory), tmp_path)


def test_an_epoch_ranks_no_more_validation_rows_than_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random ones, the same each time, and each with its own history."""
    monkeypatch.setattr(objective, "MOST_VALIDATED", 10)
    train = Sequences.from_lists([[number] for number in range(1, 41)])
    targets_U = np.arange(1, 41, dtype=TOKENS)
    once, again = (choose_held_out(train, targets_U, TokenRange(1, 30)) for _ in range(2))

    assert once.targets.tolist() == again.targets.tolist() == [int(one[0]) for one in once.histories]
    assert len(set(once.targets.tolist())) == 10
    assert once.targets.max() > 10


@pytest.mark.parametrize("users_at_once", [1, 3])
def test_a_new_item_starts_at_the_same_place_however_many_users_are_read_at_once(
    users_at_once: int, dataset: Dataset, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second item has a name that the bundle does not know."""
    known = dataset.vocabulary
    ids = tuple(tuple(f"{one}{'-new' * (n % 2)}" for n, one in enumerate(items)) for items in known.item_ids)

    def tables() -> list[list[float]]:
        grown = Continuation(bundle, Vocabulary(known.domains, ids), dataset.train, dataset.train.lengths).base
        return grown.item_embeddings_VD.tolist()

    whole = tables()
    monkeypatch.setattr(continuation, "BLOCK_USERS", users_at_once)

    np.testing.assert_allclose(tables(), whole, atol=1e-6)  # sums in another order
    # Each among its own neighbours, not all at one place
    assert len({tuple(row) for row in whole}) == len(whole)
