"""The shares of an expert's two readings, chosen on validation items."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.data.dataset import Sequences
from models.network.decoder import Decoder
from models.training import own_shares
from models.training.objective import HeldOut, choose_held_out
from models.training.own_shares import SHARES, try_own_shares
from models.tuning import OwnShares
from models.vocabulary import TokenRange
from tests.conftest import random_decoder

DOMAIN = TokenRange(1, 20)
NUM_ITEMS = 40


def held_out(histories: list[list[int]], validation: list[int]) -> HeldOut:
    return choose_held_out(Sequences.from_lists(histories), np.asarray(validation, dtype=np.int32), DOMAIN)


@pytest.fixture(scope="module")
def expert() -> Decoder:
    return random_decoder(NUM_ITEMS, seed=2)


def favourite(expert: Decoder, history: list[int], refused: set[int]) -> int:
    """The expert's best item of the domain after *history*, none of *refused*."""
    with torch.inference_mode():
        logits = expert(torch.tensor([history]))[0, -1] @ expert.item_embeddings_VD[DOMAIN.columns].T
    ranked = (logits.argsort(descending=True) + DOMAIN.first).tolist()
    return next(item for item in ranked if item not in refused)


def rows(expert: Decoder, *, ends_in_target: bool, reads_own: bool) -> tuple[list[list[int]], list[int]]:
    """Histories of one kind of end whose next item is what one of the two readings expects most among unseen items."""
    source = np.random.default_rng(4)
    histories, items = [], []
    for _ in range(60):
        target = source.choice(20, size=4, replace=False) + 1
        foreign = source.integers(21, 41, size=3)
        mixed = [*target[:2], foreign[0], target[2], foreign[1]]
        mixed += [foreign[2], target[3]] if ends_in_target else [target[3], foreign[2]]
        history = [int(item) for item in mixed]
        own = [item for item in history if item in DOMAIN]
        histories.append(history)
        items.append(favourite(expert, own if reads_own else history, set(own)))
    return histories, items


@pytest.mark.parametrize(("after_target", "after_source"), [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)])
def test_each_end_gets_the_reading_that_ranks_its_items_best(
    expert: Decoder, monkeypatch: pytest.MonkeyPatch, after_target: float, after_source: float
) -> None:
    """The held-out items are one reading's first choice, so its NDCG@10 is 1 and no mixture's can be above."""
    monkeypatch.setattr(own_shares, "LEAST_ROWS", 1)
    first, second = (
        rows(expert, ends_in_target=True, reads_own=bool(after_target)),
        rows(expert, ends_in_target=False, reads_own=bool(after_source)),
    )
    trial = try_own_shares(expert, held_out(first[0] + second[0], first[1] + second[1]), DOMAIN)

    assert trial.shares == OwnShares(after_target, after_source)
    assert trial.num_rows == {"target": 60, "source": 60}
    assert trial.ndcg_at_10["target"][SHARES.index(after_target)] == 1
    assert trial.ndcg_at_10["source"][SHARES.index(after_source)] == 1
    assert min(trial.ndcg_at_10["target"]) < 1
    assert trial.best == 1


def test_too_few_rows_of_one_end_take_what_is_best_for_all(expert: Decoder) -> None:
    """Three rows that would choose the own reading, among two hundred that choose the mixed one."""
    few = rows(expert, ends_in_target=True, reads_own=True)
    many = rows(expert, ends_in_target=False, reads_own=False)
    trial = try_own_shares(expert, held_out(few[0][:3] + 3 * many[0], few[1][:3] + 3 * many[1]), DOMAIN)

    assert trial.ndcg_at_10["target"][-1] == 1
    assert trial.shares == OwnShares(0, 0)
    assert trial.best == pytest.approx((3 * trial.ndcg_at_10["target"][0] + 180) / 183)


def test_items_that_the_user_has_take_no_part(expert: Decoder) -> None:
    """With every other item of the domain in the history, the held-out one is first under any share."""
    history = [*range(2, 21), 30]
    trial = try_own_shares(expert, held_out([history], [1]), DOMAIN)

    assert trial.ndcg_at_10 == {"source": (1.0,) * len(SHARES)}
    assert trial.shares == OwnShares(0, 0)


def test_without_validation_rows_the_mixed_reading_stays(expert: Decoder) -> None:
    trial = try_own_shares(expert, held_out([[1, 30]], [31]), DOMAIN)

    assert (trial.shares, trial.num_rows, trial.ndcg_at_10) == (OwnShares(0, 0), {"target": 0, "source": 0}, {})
    assert trial.best == 0
