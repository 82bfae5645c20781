"""POST /regenerate over a real (random) bundle: what is answered, and that it does not depend on company."""

import random
import threading

import numpy as np
import pytest

import app.serving.regeneration
from app.settings import Settings
from models.bundle import load_bundle
from models.decoding.regenerator import Regenerator
from models.decoding.rules import RULES
from models.vocabulary import Vocabulary

MIXED = "b01 f02 k03 b04 b05 f06 f07 k06 k06 f07 b08 k09 f10 f11"


def regenerate(client, body):
    answer = client.post("/regenerate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["sequences"]


def random_sequences(count, *, seed=0, longest=30):
    draw = random.Random(seed)
    return [
        " ".join(f"{draw.choice('bfk')}{draw.randrange(20):02d}" for _ in range(draw.randint(1, longest)))
        for _ in range(count)
    ]


def test_the_answer_is_what_the_regenerator_says(client, bundle, payload):
    vocabulary = bundle.vocabulary
    tokens = np.asarray([client_token(vocabulary, item) for item in MIXED.split()])
    [expected] = Regenerator(bundle, "anticipate").regenerate([tokens], "kitchen")

    answer = client.post("/regenerate", json=payload(MIXED)).json()

    assert answer == {
        "target_domain": "kitchen",
        "model_version": bundle.version,
        "sequences": [
            {
                "user_id": "u0",
                "items": vocabulary.item_ids_of(expected.token_ids),
                "kept": 4,
                "replaced": expected.replaced,
                "deleted": expected.deleted,
                "unknown": 0,
                "unknown_kept": 0,
                "truncated": 0,
            }
        ],
    }
    assert expected.replaced > 0
    assert expected.deleted > 0


def client_token(vocabulary, item_id):
    domain = next(domain for domain in vocabulary.domains if domain[0] == item_id[0])
    return vocabulary.token_id(domain, item_id)


def test_a_sequence_gets_the_same_answer_alone_in_a_batch_and_concurrently(client, payload):
    sequences = random_sequences(40)
    body = {"explain": True, "target": "food"}

    alone = [regenerate(client, payload(sequence, **body))[0] for sequence in sequences]
    in_batch = regenerate(client, payload(*sequences, **body))
    together = [answer.json()["sequences"][0] for answer in client.together(*(payload(s, **body) for s in sequences))]

    def nameless(answers):
        return [{**answer, "user_id": None} for answer in answers]

    assert nameless(in_batch) == nameless(alone)
    assert nameless(together) == nameless(alone)


def test_requests_for_different_targets_may_come_at_once(client, payload):
    bodies = [payload(MIXED, target=target) for target in ("books", "food", "kitchen") * 5]
    expected = [regenerate(client, body) for body in bodies]

    assert [answer.json()["sequences"] for answer in client.together(*bodies)] == expected


@pytest.mark.parametrize("rule", ["anticipate", "paper"])
def test_the_items_that_the_expert_expects_come_with_their_probabilities_when_asked_for(serving, bundle, payload, rule):
    """Over all items of the target their probabilities sum to 1; a part of them is the beginning of all."""
    client = serving(rule=rule)
    [every] = regenerate(client, payload(MIXED, likely_items=20))
    first, nothing_known = regenerate(client, payload(MIXED, "zz1", likely_items=3))
    values = [item["log_probability"] for item in every["likely_items"]]

    assert sorted(item["item_id"] for item in every["likely_items"]) == sorted(bundle.vocabulary.item_ids[2])
    assert values == sorted(values, reverse=True)
    assert sum(np.exp(values)) == pytest.approx(1, abs=1e-5)
    assert first["likely_items"] == every["likely_items"][:3]
    assert nothing_known["likely_items"] == []
    assert "likely_items" not in regenerate(client, payload(MIXED))[0]
    assert regenerate(client, payload(MIXED, likely_items=3.0))[0]["likely_items"] == every["likely_items"][:3]
    # Asking for them changes nothing else.
    assert {**every, "likely_items": None} == {**regenerate(client, payload(MIXED))[0], "likely_items": None}


def test_the_expected_items_of_a_sequence_are_the_same_in_any_company(client, payload):
    sequences = random_sequences(20, seed=3)
    together = regenerate(client, payload(*sequences, likely_items=5))

    for sequence, answer in zip(sequences, together, strict=True):
        assert regenerate(client, payload(sequence, likely_items=5))[0]["likely_items"] == answer["likely_items"]


@pytest.mark.parametrize("asked", [-1, 1001, 1.5, "3", True])
def test_a_number_of_expected_items_out_of_range_is_refused(client, payload, asked):
    answer = client.post("/regenerate", json=payload(MIXED, likely_items=asked))

    assert answer.status_code == 422
    assert "likely_items" in answer.text


def test_steps_of_anticipate_carry_the_probability_of_what_they_put_there(client, payload):
    [answer] = regenerate(client, payload("b01 f02 b03 f04 k05", explain=True))

    assert [step["action"] for step in answer["steps"]] == ["deleted", "replaced", "replaced", "replaced"]
    assert [answer["steps"][0][name] for name in ("alpha", "beta", "score", "margin")] == [None] * 4
    scores = [step["score"] for step in answer["steps"][1:]]
    assert scores == sorted(scores)  # the best stands last
    assert all(score < 0 for score in scores)
    assert all(step["margin"] >= 0 for step in answer["steps"][1:])


def test_steps_name_every_decision_at_its_place_in_the_submitted_items(serving, payload):
    client = serving(rule="paper")
    submitted = "b01 zz1 f02 k03 b99 b04 f05"
    [answer] = regenerate(client, payload(submitted, explain=True))
    items = submitted.split()

    assert [step["position"] for step in answer["steps"]] == [0, 2, 5, 6]
    assert [step["source"]["item_id"] for step in answer["steps"]] == [items[n] for n in (0, 2, 5, 6)]
    assert [step["source"]["domain"] for step in answer["steps"]] == ["books", "food", "books", "food"]
    assert {(step["action"], step["item_id"] is None) for step in answer["steps"]} <= {
        ("replaced", False),
        ("deleted", True),
    }
    assert sum(step["action"] == "replaced" for step in answer["steps"]) == answer["replaced"]
    # The first item has no history to decide by; every other decision has its numbers
    assert answer["steps"][0]["action"] == "deleted"
    assert [answer["steps"][0][name] for name in ("alpha", "beta", "score", "margin")] == [None] * 4
    for step in answer["steps"][1:]:
        assert 0 <= step["alpha"] <= 1
        assert 0 <= step["beta"] <= 1
        assert step["margin"] >= 0


def test_steps_and_kept_items_tell_the_whole_answer(client, payload):
    for sequence, answer in zip(
        (sequences := random_sequences(20, seed=3, longest=15)),
        regenerate(client, payload(*sequences, explain=True)),
        strict=True,
    ):
        rewritten = [item if item[0] == "k" else None for item in sequence.split()]
        for step in answer["steps"]:
            rewritten[step["position"]] = step["item_id"]
        rewritten = [item for item in rewritten if item is not None]

        assert [item for n, item in enumerate(rewritten) if n == 0 or rewritten[n - 1] != item] == answer["items"]


def test_without_explain_there_are_no_steps(client, payload):
    assert "steps" not in regenerate(client, payload(MIXED))[0]


def test_unknown_items_of_other_domains_and_of_unknown_ones_are_skipped_and_counted(client, payload):
    [with_unknown] = regenerate(client, payload("b01 b99 k02 gg1 f03"))
    [without] = regenerate(client, payload("b01 k02 f03"))

    assert with_unknown == without | {"unknown": 2}


def test_unknown_items_of_the_target_stay_where_they_are_and_change_nothing_else(client, payload):
    """Also the only items of a sequence, and one between two items that would collapse without it."""
    [answer] = regenerate(client, payload("k98 b01 k02 k99 f03 f04", explain=True))
    [without] = regenerate(client, payload("b01 k02 f03 f04", explain=True))
    only, between = regenerate(client, payload("k98 b99 k99 k99", "k05 k99 k05"))
    after = [step["item_id"] for step in without["steps"] if step["position"] > 1 and step["item_id"]]

    assert answer["items"][0] == "k98"
    assert answer["items"][answer["items"].index("k02") + 1 :] == ["k99", *after]
    assert [item for item in answer["items"] if item not in ("k98", "k99")] == without["items"]
    assert (answer["unknown_kept"], answer["unknown"], answer["kept"]) == (2, 0, 1)
    assert [step["source"]["item_id"] for step in answer["steps"]] == ["b01", "f03", "f04"]
    assert [step["position"] for step in answer["steps"]] == [1, 4, 5]
    assert (only["items"], only["unknown_kept"], only["unknown"]) == (["k98", "k99"], 3, 1)
    assert between["items"] == ["k05", "k99", "k05"]


def test_an_unknown_item_of_the_target_before_the_first_that_is_read_is_truncated_like_a_known_one(
    client, bundle, payload
):
    max_items = Regenerator(bundle, "anticipate").max_items
    known = " ".join(f"k{n % 20:02d}" for n in range(max_items + 2))
    [answer] = regenerate(client, payload(f"k99 {known} k98"))

    assert answer["items"] == [*known.split()[-max_items:], "k98"]
    assert (answer["truncated"], answer["unknown_kept"], answer["kept"]) == (3, 1, max_items)


def test_on_unknown_error_names_every_unknown_item_and_its_place(client, payload):
    answer = client.post("/regenerate", json=payload("b01 k02", "b01 b99 gg1", on_unknown="error"))

    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:taesar:problem:unknown-sequence-items"
    assert [found["location"] for found in answer.json()["errors"]] == [
        ["body", "sequences", 1, "items", 1],
        ["body", "sequences", 1, "items", 2],
    ]
    assert "position 1: unknown item 'b99' of domain 'books'" in answer.json()["detail"]


def test_on_unknown_error_lets_known_items_pass(client, payload):
    assert regenerate(client, payload(MIXED, on_unknown="error")) == regenerate(client, payload(MIXED))


def test_an_unknown_target_domain_is_404_and_names_those_there_are(client, payload):
    answer = client.post("/regenerate", json=payload(MIXED, target="garden"))

    assert answer.status_code == 404
    assert answer.json()["detail"] == "unknown domain 'garden'; known domains: books, food, kitchen"


def test_a_long_sequence_is_answered_as_its_last_known_items_are(client, bundle, payload):
    max_items = Regenerator(bundle, "anticipate").max_items
    items = " ".join(f"{'bfk'[n % 3]}{n % 20:02d}" for n in range(max_items + 5)).split()
    last = items[-max_items:]
    submitted = [*items[:-2], "b99", *items[-2:]]  # unknown items do not count as read

    [answer] = regenerate(client, payload(" ".join(submitted), explain=True))
    [expected] = regenerate(client, payload(" ".join(last), explain=True))

    assert (answer["truncated"], answer["unknown"]) == (5, 1)
    assert answer["items"] == expected["items"]
    assert [submitted[step["position"]] for step in answer["steps"]] == [
        step["source"]["item_id"] for step in expected["steps"]
    ]


def test_the_counts_add_up_to_the_submitted_items(client, payload):
    sequences = [*random_sequences(30, seed=7), "gg1 b99 k99", ""]
    counts = ("kept", "replaced", "deleted", "unknown", "unknown_kept", "truncated")

    for sequence, answer in zip(sequences, regenerate(client, payload(*sequences)), strict=True):
        assert sum(answer[name] for name in counts) == len(sequence.split())


@pytest.mark.parametrize(("sequence", "unknown"), [("", 0), ("b99 gg1", 2)])
def test_a_sequence_of_nothing_known_is_answered_with_nothing(client, payload, sequence, unknown):
    nothing = {"items": [], "kept": 0, "replaced": 0, "deleted": 0, "unknown": unknown}
    nothing |= {"unknown_kept": 0, "truncated": 0, "steps": []}

    alone = regenerate(client, payload(sequence, explain=True))
    beside = regenerate(client, payload(MIXED, sequence, explain=True))

    assert alone == [{"user_id": "u0"} | nothing]
    assert beside[1] == {"user_id": "u1"} | nothing


def test_no_sequences_at_all_is_an_invalid_payload(client, payload):
    assert client.post("/regenerate", json=payload()).status_code == 422


def test_a_target_only_sequence_comes_back_unchanged(client, payload):
    [answer] = regenerate(client, payload("k01 k02 k03 k02"))

    assert answer["items"] == ["k01", "k02", "k03", "k02"]
    assert answer["kept"] == 4


def test_limits_hold_exactly(serving, payload):
    client = serving(max_sequences_per_request=2, max_items_per_sequence=3, max_items_per_request=4)

    assert client.post("/regenerate", json=payload("k01 k02 k03", "k01")).status_code == 200
    many = client.post("/regenerate", json=payload("k01", "k01", "k01"))
    long = client.post("/regenerate", json=payload("k01", "k01 k02 k03 k04"))

    total = client.post("/regenerate", json=payload("k01 k02 k03", "k01 zz1"))

    assert (many.status_code, long.status_code, total.status_code) == (413, 413, 413)
    assert total.json()["detail"] == "5 items in all sequences; the limit is 4 (TAESAR_MAX_ITEMS_PER_REQUEST)"
    assert many.json()["detail"] == "3 sequences; the limit is 2 (TAESAR_MAX_SEQUENCES_PER_REQUEST)"
    assert long.json()["detail"] == "sequence 1 has 4 items; the limit is 3 (TAESAR_MAX_ITEMS_PER_SEQUENCE)"


def test_a_limit_on_all_items_below_that_on_one_sequence_is_refused():
    with pytest.raises(ValueError, match="could never be sent"):
        Settings(max_items_per_sequence=10, max_items_per_request=9)


@pytest.mark.parametrize(("on_unknown", "status"), [("skip", 200), ("error", 422)])
def test_items_are_looked_up_beside_the_event_loop(client, payload, monkeypatch, on_unknown, status):
    """The event loop answers others meanwhile, health checks among them."""
    threads = []
    read = app.serving.regeneration.read_history
    monkeypatch.setattr(
        app.serving.regeneration,
        "read_history",
        lambda *history, **options: threads.append(threading.get_ident()) or read(*history, **options),
    )

    answer = client.post("/regenerate", json=payload(MIXED, "zz1", on_unknown=on_unknown))

    assert answer.status_code == status
    assert len(threads) == 2
    assert client.portal.call(threading.get_ident) not in threads


def test_a_loaded_model_looks_items_up_without_building_tables_first(serving, monkeypatch):
    """They are built where the bundle is read, in a thread of its own."""
    build, built = Vocabulary.build_lookups, []

    def recorded(vocabulary):
        built.append((vocabulary, threading.get_ident()))
        build(vocabulary)

    monkeypatch.setattr(Vocabulary, "build_lookups", recorded)
    client = serving()
    [(vocabulary, thread)] = built

    assert vocabulary is client.app.state.inference.registry.active().bundle.vocabulary
    assert thread != client.portal.call(threading.get_ident)


def test_a_request_without_user_ids_is_answered(client, payload):
    body = payload(MIXED)
    del body["sequences"][0]["user_id"]

    assert regenerate(client, body)[0]["user_id"] is None


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_serves_and_is_shown(serving, bundle, payload, rule):
    client = serving(rule=rule)
    tokens = np.asarray([client_token(bundle.vocabulary, item) for item in MIXED.split()])
    [expected] = Regenerator(load_bundle(bundle.directory), rule).regenerate([tokens], "kitchen")

    assert regenerate(client, payload(MIXED))[0]["items"] == bundle.vocabulary.item_ids_of(expected.token_ids)
    assert [model["rule"] for model in client.get("/models").json()["loaded"]] == [rule]
