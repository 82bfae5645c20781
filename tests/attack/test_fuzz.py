"""A small share of ``make fuzz``, and that it would notice."""

import pytest

from tests.attack.bundle_fuzz import fuzz_bundles
from tests.attack.fuzz import KEY, case_of, fuzz, told_in_log
from tests.attack.served import is_alive, served
from tests.chaos.inputs import food_kitchen

CASES = 400


@pytest.fixture
def cluster(tmp_path):
    bundle, path = food_kitchen(tmp_path, num_sequences=10)
    (tmp_path / "bundles").mkdir()
    settings = {
        "api_keys": KEY,
        "slow_client_seconds": 2,
        "key_requests_per_second": 0,
        "bundle_root": tmp_path / "bundles",
    }
    with served(tmp_path / "service", bundle, path.parent, **settings) as cluster:
        yield cluster


def test_mutated_requests_crash_nothing_and_meet_only_documented_errors(cluster):
    tally = fuzz(cluster, seed=1, first=0, cases=CASES)

    assert tally.wrong + told_in_log(cluster) == []
    assert sum(tally.statuses.values()) == CASES
    assert {"200", "401", "404", "422"} <= tally.statuses.keys()  # it reaches behind the first check
    assert is_alive(cluster)


def test_spoilt_bundles_are_refused_with_a_reason_and_the_model_that_serves_goes_on(cluster, tmp_path):
    tally = fuzz_bundles(cluster, tmp_path / "bundle", tmp_path / "bundles", seed=1, first=0, cases=25)

    assert tally.wrong + told_in_log(cluster) == []
    assert {"200", "409"} <= tally.statuses.keys()
    assert is_alive(cluster)


def test_a_case_is_the_same_every_time():
    assert [case_of(7, n) for n in range(50)] == [case_of(7, n) for n in range(50)]
    assert len({case_of(7, n) for n in range(50)}) > 40
