"""From values to a sentence: what the verdict says of gains that are known."""

from __future__ import annotations

import numpy as np
import pytest

from models.check.verdict import LineValues, judge

USERS = 4000


def line(mean: float, rows: str, *, seed: int, spread: float = 0.05, users: int = USERS) -> LineValues:
    """Values of a line that moves together with the others, as the same users' do."""
    easy_N = np.random.default_rng(1).random(users)
    own = np.random.default_rng(seed)
    values_SN = [mean * 2 * easy_N + spread * own.standard_normal(users) for _ in range(2)]
    half = users // 2
    return LineValues(np.stack(values_SN)[:, :half], np.stack(values_SN)[:, half:], rows)


def verdict_of(**means: float):
    rows = {"original": "original", "with_expert": "original", "duplicated": "duplicated"}
    lines = {
        name.replace("_", " "): line(mean, rows.get(name, "regenerated"), seed=place)
        for place, (name, mean) in enumerate(means.items(), start=2)
    }
    return judge("shop", "sasrec", lines, seed=1)


def test_a_gain_that_stands_out_helps() -> None:
    found = verdict_of(original=0.1, duplicated=0.1, regenerated=0.13, served=0.15)

    assert found.outcome == "helps"
    assert found.regeneration.judged.line == "served"
    assert found.sentence.startswith("Regeneration helps shop by +")


def test_a_loss_that_stands_out_harms_and_says_do_not() -> None:
    found = verdict_of(original=0.15, duplicated=0.15, regenerated=0.1, served=0.08)

    assert found.outcome == "harms"
    assert "do not use it there" in found.sentence


def test_the_expert_may_help_where_regeneration_harms() -> None:
    """The sentence begins with what helps and keeps the warning."""
    found = verdict_of(original=0.15, duplicated=0.15, regenerated=0.1, served=0.08, with_expert=0.2)

    assert (found.outcome, found.regeneration.outcome) == ("helps", "harms")
    assert found.sentence.startswith("The expert's scores")
    assert "regeneration harms shop" in found.sentence


def test_what_duplicated_rows_show_as_well_is_no_gain() -> None:
    found = verdict_of(original=0.1, duplicated=0.15, regenerated=0.15, served=0.15)

    assert found.regeneration.judged.baseline == "duplicated"
    assert found.regeneration.outcome == "undecided"


def test_an_undecided_verdict_says_how_many_users_would_show_it() -> None:
    lines = {
        name: line(0.1, name, seed=place, spread=0.4, users=200)
        for place, name in enumerate(("original", "regenerated"), start=2)
    }
    found = judge("shop", "sasrec", lines, seed=1)

    assert found.outcome == "undecided"
    assert found.regeneration.users == 100
    assert found.regeneration.users_for_shown_gain is not None
    assert found.regeneration.users_for_shown_gain > 100
    assert "test users would show +5%, there were 100" in found.sentence


def test_a_training_on_other_rows_has_the_noise_of_training_in_its_interval() -> None:
    values = line(0.1, "original", seed=3)
    same = {"original": values, "with expert": LineValues(values.validation_SN, values.test_SN * 1.03, "original")}
    same["served"] = LineValues(values.validation_SN, values.test_SN * 1.03, "regenerated")
    found = judge("shop", "sasrec", same, seed=1)
    assert found.advice is not None
    advice, served = found.advice.judged.gain, found.regeneration.judged.gain
    assert advice is not None
    assert served is not None

    assert advice.mean == pytest.approx(served.mean) == pytest.approx(0.03)
    assert (found.advice.outcome, found.regeneration.outcome) == ("helps", "undecided")


def test_the_line_that_is_judged_is_picked_on_validation_alone() -> None:
    """The best line on test items is not looked for: it would look better than it is."""
    good, bad = line(0.2, "regenerated", seed=2), line(0.1, "regenerated", seed=3)
    lines = {
        "original": line(0.1, "original", seed=4),
        "regenerated": LineValues(good.validation_SN, bad.test_SN, "regenerated"),
        "served": LineValues(bad.validation_SN, good.test_SN, "regenerated"),
    }

    assert judge("shop", "sasrec", lines, seed=1).regeneration.judged.line == "regenerated"
