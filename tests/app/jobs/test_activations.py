"""Which versions serve, in SQL: decisions follow one another, and none is lost, on both databases."""

import concurrent.futures

import pytest

from app.errors import ActivationConflictError, ModelUnavailableError
from app.serving.activations import ActivationStore, OvertakenError, Serving


@pytest.fixture
def store(engine):
    return ActivationStore(engine)


def test_the_last_decision_is_what_serves(store):
    decisions = [
        Serving(1, "a"),
        Serving(2, "b", "a"),
        Serving(3, "b", "a", "c", 0.25),
        Serving(4, "c", "b"),
    ]
    assert store.latest() is None
    for decided in decisions:
        store.record(decided)

        assert store.latest() == decided


def test_of_decisions_made_at_the_same_time_one_is_recorded(store):
    store.record(Serving(1, "a"))

    def decide(version):
        try:
            store.record(Serving(1, "a").activated(version))
        except OvertakenError:
            return None
        return version

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        recorded = [version for version in pool.map(decide, "bcdefghi") if version]

    assert len(recorded) == 1
    assert store.latest() == Serving(2, recorded[0], "a")


def test_an_activation_ends_a_canary_and_is_none_where_nothing_changes():
    alone = Serving(4, "b", "a")

    assert Serving(3, "b", "a", "c", 0.5).activated("b") == alone
    assert alone.activated("b") is alone
    assert alone.activated("a") == Serving(5, "a", "b")
    assert Serving(active="b").activated("b") == Serving(1, "b")


def test_a_roll_back_takes_back_the_last_switch():
    with_canary = Serving(3, "b", "a", "c", 0.5)

    assert with_canary.rolled_back() == Serving(4, "b", "a")
    assert Serving(4, "b", "a").rolled_back() == Serving(5, "a", "b")
    with pytest.raises(ActivationConflictError):
        Serving(1, "a").rolled_back()


def test_a_canary_stands_beside_another_active_version():
    assert Serving(4, "b", "a").with_canary("c", 0.1).versions == ("b", "c")
    with pytest.raises(ActivationConflictError):
        Serving(4, "b", "a").with_canary("b", 0.1)
    with pytest.raises(ModelUnavailableError):
        Serving().with_canary("b", 0.1)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_a_canary_has_its_share_of_the_keys_and_a_larger_share_takes_none_away(share):
    keys = [f"user-{number}" for number in range(20_000)]

    def met(share):
        return {key for key in keys if Serving(1, "a").with_canary("b", share).version_for(key) == "b"}

    assert abs(len(met(share)) / len(keys) - share) < 0.012
    assert met(share) < met(1.0) == set(keys)
    assert met(share / 2) < met(share)


def test_not_the_same_keys_meet_every_canary():
    keys = [f"user-{number}" for number in range(2000)]
    first, second = (
        {key for key in keys if Serving(1, "a").with_canary(version, 0.1).version_for(key) == version}
        for version in ("b", "c")
    )

    assert len(first & second) < len(first) / 3
