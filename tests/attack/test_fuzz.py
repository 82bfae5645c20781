"""A small share of ``make fuzz``, and that it would notice."""

import pytest

from tests.attack.fuzz import KEY, case_of, fuzz
from tests.attack.served import is_alive, served
from tests.chaos.inputs import food_kitchen

CASES = 400


@pytest.fixture
def cluster(tmp_path):
    bundle, path = food_kitchen(tmp_path, num_sequences=10)
    with served(tmp_path / "service", bundle, path.parent, api_keys=KEY, slow_client_seconds=2) as cluster:
        yield cluster


def test_mutated_requests_crash_nothing_and_meet_only_documented_errors(cluster):
    tally = fuzz(cluster, seed=1, first=0, cases=CASES)

    assert tally.wrong == []
    assert sum(tally.statuses.values()) == CASES
    assert {"200", "401", "404", "422"} <= tally.statuses.keys()  # it reaches behind the first check
    assert is_alive(cluster)


def test_a_case_is_the_same_every_time():
    assert [case_of(7, n) for n in range(50)] == [case_of(7, n) for n in range(50)]
    assert len({case_of(7, n) for n in range(50)}) > 40
