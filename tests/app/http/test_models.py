"""GET /models and activation: switching serves no mistake and drops no request."""

import concurrent.futures
import json
import shutil
import threading
import time

import pytest

from models.bundle import with_tunings
from models.errors import BundleCorruptError, BundleMissingFileError
from models.tuning import Guard, OwnShares, TargetTuning
from tests.services import eventually


@pytest.fixture
def root(tmp_path, make_bundle):
    """A folder of three bundles; returns (folder, their versions)."""
    bundles = [make_bundle(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    return tmp_path, [bundle.version for bundle in bundles]


def answer_of(client, payload):
    answer = client.post("/regenerate", json=payload("b01 f02 k03 b04 f05 b06 k07 f08 b09"))
    assert answer.status_code == 200
    return answer.json()


def test_models_are_listed_with_what_they_know(client, bundle):
    assert client.get("/models").json() == {
        "active": bundle.version,
        "previous": None,
        "canary": None,
        "available": [],
        "loaded": [
            {
                "version": bundle.version,
                "name": None,
                "created": None,
                "period": None,
                "active": True,
                "rule": "anticipate",
                "max_items": 16,
                "domains": [
                    {
                        "name": name,
                        "num_items": 20,
                        "own_share_after_target": 0.0,
                        "own_share_after_source": 0.0,
                        "joint_weight": 0.0,
                        "training_hints": None,
                        "serving_hints": None,
                        "expert_weight": None,
                        "finding": None,
                    }
                    for name in ("books", "food", "kitchen")
                ],
                "provenance": {"seed": 1},
            }
        ],
    }


def test_a_model_says_what_validation_chose_for_every_target(serving, payload, make_bundle, tmp_path):
    """And keeps to it: nothing is put into live histories of food, and all of books's are regenerated."""
    made = make_bundle(tmp_path / "chosen", seed=4)
    closed = Guard(
        training_hints=3,
        serving_hints=0,
        finding="Live histories of food are best passed through: .02, .03.",
        expert_weight=0.4,
    )
    with_tunings(made, [TargetTuning(), TargetTuning(OwnShares(0.25, 0.5), closed), TargetTuning()], {})
    client = serving(bundle=made.directory)
    _, food, _ = client.get("/models").json()["loaded"][0]["domains"]

    assert food == {
        "name": "food",
        "num_items": 20,
        "own_share_after_target": 0.25,
        "own_share_after_source": 0.5,
        "joint_weight": 0.0,
        "training_hints": 3,
        "serving_hints": 0,
        "expert_weight": 0.4,
        "finding": closed.finding,
    }
    for target, items in (("food", ["f02", "f05"]), ("books", None)):
        body = payload("b01 f02 f02 k03 k04 f05 b06", target=target)
        (answer,) = client.post("/regenerate", json=body).json()["sequences"]
        assert (answer["items"] == items, answer["replaced"] > 0) == (target == "food", target == "books")


def test_a_rule_that_keeps_to_no_guard_tells_of_none(serving, payload, make_bundle, tmp_path):
    """The guard was found with another rule, so nothing is left undone; the shares of the readings hold for all."""
    made = make_bundle(tmp_path / "chosen", seed=4)
    closed = TargetTuning(OwnShares(0.25, 0.5), Guard(0, 0, "found with anticipate"))
    with_tunings(made, [closed] * 3, {})
    client = serving(bundle=made.directory, rule="without-gcs")
    _, food, _ = client.get("/models").json()["loaded"][0]["domains"]
    body = payload("b01 f02 f02 k03 k04 f05 b06", target="food")
    (answer,) = client.post("/regenerate", json=body).json()["sequences"]

    unknown = ("training_hints", "serving_hints", "expert_weight", "finding")
    assert {name: food[name] for name in unknown} == dict.fromkeys(unknown)
    assert food["own_share_after_source"] == 0.5
    assert answer["replaced"] > 0


def test_without_a_bundle_the_list_is_empty(serving):
    empty = {"active": None, "previous": None, "canary": None, "available": [], "loaded": []}

    assert serving(bundle=None).get("/models").json() == empty


def test_activation_switches_and_back(serving, payload, root):
    folder, (first, second, third) = root
    client = serving(bundle=folder / "a", bundle_root=folder)
    before = answer_of(client, payload)

    assert client.get("/models").json()["available"] == sorted([second, third])
    activated = client.post(f"/models/{second}/activate")
    after = answer_of(client, payload)
    client.post(f"/models/{first}/activate")

    assert (activated.status_code, activated.json()["active"]) == (200, True)
    assert (before["model_version"], after["model_version"]) == (first, second)
    assert before["sequences"] != after["sequences"]
    assert answer_of(client, payload) == before


def test_activating_the_active_model_changes_nothing(serving, payload, root):
    folder, (first, *_) = root
    client = serving(bundle=folder / "a", bundle_root=folder)

    assert client.post(f"/models/{first}/activate").json()["active"] is True
    assert client.get("/models").json()["active"] == first


def test_the_longest_inactive_model_is_forgotten_beyond_the_capacity(serving, root):
    folder, (first, second, third) = root
    client = serving(bundle=folder / "a", bundle_root=folder, max_loaded_bundles=2)
    for version in (second, third):
        client.post(f"/models/{version}/activate")
    models = client.get("/models").json()

    assert [model["version"] for model in models["loaded"]] == [third, second]
    assert [model["active"] for model in models["loaded"]] == [True, False]
    assert models["available"] == [first]


def test_a_service_without_a_bundle_serves_what_is_activated(serving, payload, root):
    folder, (_, second, _) = root
    client = serving(bundle=None, bundle_root=folder)
    client.post(f"/models/{second}/activate")

    assert answer_of(client, payload)["model_version"] == second
    assert client.get("/readyz").status_code == 200


def test_an_unknown_version_is_404(client):
    answer = client.post("/models/000000000000/activate")

    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:taesar:problem:unknown-model"


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "bundle-corrupt"),
        (lambda path: path.unlink(), "bundle-missing-file"),
    ],
)
def test_a_damaged_bundle_is_409_naming_the_file_and_the_running_model_serves_on(serving, payload, root, damage, kind):
    folder, (first, second, _) = root
    client = serving(bundle=folder / "a", bundle_root=folder)
    damage(folder / "b" / "expert-01.safetensors")
    answer = client.post(f"/models/{second}/activate")

    assert answer.status_code == 409
    assert answer.json()["type"] == f"urn:taesar:problem:{kind}"
    assert "b/expert-01.safetensors" in answer.json()["detail"]
    assert answer_of(client, payload)["model_version"] == first


def test_a_folder_that_is_no_bundle_is_passed_over(serving, root, make_bundle):
    folder, versions = root
    (folder / "notes").mkdir()
    shutil.copytree(folder / "a", folder / ".d-being-written")
    make_bundle(folder / ".e-being-written", seed=8)
    (folder / "b" / "manifest.json").write_text("{")
    models = serving(bundle=folder / "a", bundle_root=folder).get("/models").json()

    assert models["available"] == [versions[2]]


def test_a_bundle_replaced_on_disk_can_be_activated(serving, payload, root, make_bundle):
    folder, (first, *_) = root
    client = serving(bundle=folder / "a")
    shutil.rmtree(folder / "a")
    newer = make_bundle(folder / "a", seed=9).version

    assert client.get("/models").json()["available"] == [newer]
    assert answer_of(client, payload)["model_version"] == first
    assert client.post(f"/models/{newer}/activate").status_code == 200
    assert answer_of(client, payload)["model_version"] == newer


@pytest.mark.parametrize(
    ("file", "error"), [("manifest.json", BundleMissingFileError), ("base.safetensors", BundleCorruptError)]
)
def test_a_first_bundle_that_cannot_be_loaded_stops_the_start(serving, root, file, error):
    folder, _ = root
    if error is BundleMissingFileError:
        (folder / "a" / file).unlink()
    else:
        (folder / "a" / file).write_bytes(b"")

    with pytest.raises(error, match=file):
        serving(bundle=folder / "a")


def test_a_request_accepted_before_a_switch_is_answered_by_its_model(serving, payload, root, monkeypatch):
    folder, (first, second, _) = root
    client = serving(bundle=folder / "a", bundle_root=folder, max_loaded_bundles=1)
    expected = answer_of(client, payload)
    regenerator = client.app.state.inference.registry.active().regenerator
    real, entered, gate = regenerator.regenerate, threading.Event(), threading.Event()

    def slowly(sequences, target, **options):
        entered.set()
        assert gate.wait(10)
        return real(sequences, target, **options)

    monkeypatch.setattr(regenerator, "regenerate", slowly)
    answers = []
    caller = threading.Thread(target=lambda: answers.append(answer_of(client, payload)))
    caller.start()
    assert entered.wait(10)
    activated = client.post(f"/models/{second}/activate")
    gate.set()
    caller.join(10)

    assert activated.status_code == 200
    assert answers == [expected]
    assert answers[0]["model_version"] == first
    assert answer_of(client, payload)["model_version"] == second


def test_switching_back_and_forth_under_load_drops_and_mixes_nothing(serving, payload, root):
    folder, (first, second, _) = root
    client = serving(bundle=folder / "a", bundle_root=folder)
    expected = {first: answer_of(client, payload)}
    client.post(f"/models/{second}/activate")
    expected[second] = answer_of(client, payload)
    stop, seen = threading.Event(), []

    def ask():
        while not stop.is_set():
            seen.append(answer_of(client, payload))

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    statuses, deadline = [], time.monotonic() + 30
    while len(statuses) < 20 or {answer["model_version"] for answer in list(seen)} != {first, second}:
        assert time.monotonic() < deadline
        version = (first, second)[len(statuses) % 2]
        statuses.append(client.post(f"/models/{version}/activate").status_code)
        time.sleep(0.02)  # on a loaded machine the callers would otherwise hardly get a turn between two switches
    stop.set()
    for caller in callers:
        caller.join(20)

    assert set(statuses) == {200}
    assert all(answer == expected[answer["model_version"]] for answer in seen)


@pytest.mark.parametrize(
    "provenance",
    [
        '{"name": 3, "created": [], "period": "long ago"}',
        '{"period": {"first": NaN}, "loss": [Infinity, {"a": -Infinity}]}',
    ],
)
def test_odd_words_about_a_bundle_do_not_take_down_the_list_of_all(serving, root, provenance):
    folder, (version, *_) = root
    manifest = folder / "a" / "manifest.json"
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"provenance": 0}).replace(
            '"provenance": 0', f'"provenance": {provenance}'
        )
    )
    answer = serving(bundle=folder / "a", bundle_root=folder).get("/models")
    [loaded] = answer.json()["loaded"]

    assert (answer.status_code, loaded["version"]) == (200, version)
    assert {loaded.get(name) for name in ("name", "created", "period")} == {None}


def test_a_bundle_shows_its_name_its_date_and_the_period_of_its_data(serving, root):
    """They are no part of its version."""
    folder, (version, *_) = root
    period = {"first": 957225600.0, "last": 1406073600.0, "first_date": "2000-05-02", "last_date": "2014-07-23"}
    said = {"name": "spring", "created": "2026-03-01T04:00:00+00:00", "period": period}
    manifest = folder / "a" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"provenance": said}))
    [loaded] = serving(bundle=folder / "a", bundle_root=folder).get("/models").json()["loaded"]

    assert loaded["version"] == version
    assert {name: loaded[name] for name in said} == said


@pytest.mark.parametrize("name", ["b", "c"])
def test_a_folder_of_bundles_with_a_hostile_manifest_lists_the_others(serving, root, name):
    folder, versions = root
    manifest = folder / name / "manifest.json"
    manifest.write_text('{"a":' * 50_000 + "1" + "}" * 50_000)
    listed = serving(bundle=folder / "a", bundle_root=folder).get("/models").json()["available"]

    assert listed == [versions[{"b": 2, "c": 1}[name]]]


def test_what_was_activated_serves_after_a_restart_and_so_does_what_a_roll_back_gives(serving, payload, root):
    """The bundle of the start serves until the first activation only; without a restart it is no different."""
    folder, (first, second, _) = root
    places = {"bundle": folder / "a", "bundle_root": folder}
    client = serving(**places)
    client.post(f"/models/{second}/activate")
    restarted = serving(**places)
    found = restarted.get("/models").json()

    assert (found["active"], found["previous"]) == (second, first)
    assert [model["version"] for model in found["loaded"]] == [second, first]
    assert answer_of(restarted, payload)["model_version"] == second
    assert restarted.post("/models/roll-back").json()["active"] == first
    assert serving(**places).get("/models").json()["active"] == first


def test_a_roll_back_ends_a_canary_first_then_goes_back_and_again_forth(serving, root):
    folder, (first, second, third) = root
    client = serving(bundle=folder / "a", bundle_root=folder, max_loaded_bundles=3)
    client.post(f"/models/{second}/activate")
    started = client.post(f"/models/{third}/canary", json={"share": 0.5}).json()
    ended, back, forth = (client.post("/models/roll-back").json() for _ in range(3))

    assert started["canary"] == {"version": third, "share": 0.5}
    assert [(found["active"], found["canary"]) for found in (ended, back, forth)] == [
        (second, None),
        (first, None),
        (second, None),
    ]


def test_with_nothing_before_it_a_roll_back_is_409(client):
    answer = client.post("/models/roll-back")

    assert (answer.status_code, answer.json()["type"]) == (409, "urn:taesar:problem:activation-conflict")


def test_a_canary_answers_its_share_of_the_users_and_a_user_meets_one_version(serving, payload, root):
    folder, (first, second, _) = root
    client = serving(bundle=folder / "a", bundle_root=folder)
    client.post(f"/models/{second}/canary", json={"share": 0.3})
    bodies = [payload("b01 f02 k03") for _ in range(60)]
    for number, body in enumerate(bodies):
        body["sequences"][0]["user_id"] = f"user-{number}"
    met, again = ([answer.json()["model_version"] for answer in client.together(*bodies)] for _ in range(2))

    assert met == again
    assert 6 <= met.count(second) <= 30  # 18 of 60 are meant; which, is fixed by the bundles
    assert met.count(first) + met.count(second) == 60


def test_without_a_user_the_request_id_decides_so_trying_again_meets_the_same_version(serving, payload, root):
    folder, (first, second, _) = root
    client = serving(bundle=folder / "a", bundle_root=folder)
    client.post(f"/models/{second}/canary", json={"share": 0.5})
    body = payload("b01 f02 k03")
    del body["sequences"][0]["user_id"]
    met = [
        client.post("/regenerate", json=body, headers={"X-Request-ID": f"request-{number}"}).json()["model_version"]
        for number in (*range(20), *range(20))
    ]

    assert met[:20] == met[20:]
    assert set(met) == {first, second}


def test_activating_the_canary_ends_it(serving, root):
    folder, (first, second, _) = root
    client = serving(bundle=folder / "a", bundle_root=folder)
    client.post(f"/models/{second}/canary", json={"share": 1.0})
    client.post(f"/models/{second}/activate")
    found = client.get("/models").json()

    assert (found["active"], found["previous"], found["canary"]) == (second, first, None)


@pytest.mark.parametrize("share", [0, 1.01, -0.1, "0.1", None])
def test_a_share_is_a_number_above_0_and_at_most_1(serving, root, share):
    folder, (_, second, _) = root
    client = serving(bundle=folder / "a", bundle_root=folder)

    assert client.post(f"/models/{second}/canary", json={"share": share}).status_code == 422
    assert client.get("/models").json()["canary"] is None


def test_the_active_version_is_no_canary_and_neither_is_any_where_nothing_is_active(serving, root):
    folder, (first, second, _) = root
    client = serving(bundle=folder / "a", bundle_root=folder)

    assert client.post(f"/models/{first}/canary", json={"share": 0.1}).status_code == 409
    assert serving(bundle=None, bundle_root=folder, data=folder / "other").post(
        f"/models/{second}/canary", json={"share": 0.1}
    ).json()["type"] == ("urn:taesar:problem:model-unavailable")


def test_a_request_may_name_any_loaded_version_and_no_other(serving, payload, root):
    folder, (first, second, third) = root
    client = serving(bundle=folder / "a", bundle_root=folder)
    expected = answer_of(client, payload)
    client.post(f"/models/{second}/activate")
    body = payload("b01 f02 k03 b04 f05 b06 k07 f08 b09")
    named = client.post("/regenerate", json={**body, "model_version": first})
    refused = client.post("/regenerate", json={**body, "model_version": third})

    assert named.json() == expected
    assert (refused.status_code, refused.json()["type"]) == (404, "urn:taesar:problem:unknown-model")


def test_what_was_activated_and_cannot_be_loaded_after_a_restart_makes_the_service_unready(serving, payload, root):
    """It serves what it was started with: whoever reads /readyz sends nobody there."""
    folder, (first, second, _) = root
    serving(bundle=folder / "a", bundle_root=folder).post(f"/models/{second}/activate")
    (folder / "b" / "expert-01.safetensors").unlink()
    restarted = serving(bundle=folder / "a", bundle_root=folder)
    ready = restarted.get("/readyz")

    assert answer_of(restarted, payload)["model_version"] == first
    assert ready.status_code == 503
    assert "b/expert-01.safetensors" in ready.json()["checks"]["activation"]


def test_two_replicas_of_one_database_agree_and_the_second_loads_what_the_first_activated(serving, payload, root):
    folder, (first, second, third) = root
    one, other = (serving(bundle=folder / "a", bundle_root=folder, max_loaded_bundles=3) for _ in range(2))
    one.post(f"/models/{second}/activate")
    eventually(lambda: other.get("/models").json()["active"] == second)
    other.post(f"/models/{third}/canary", json={"share": 1.0})
    eventually(lambda: one.get("/models").json()["canary"] is not None)

    assert answer_of(one, payload) == answer_of(other, payload)
    assert answer_of(one, payload)["model_version"] == third
    assert other.get("/models").json()["previous"] == first


def test_a_bundle_is_loaded_once_however_many_ask_for_it_and_also_while_its_last_answer_is_out(serving, root):
    folder, (first, second, _) = root
    registry = serving(bundle=folder / "a", bundle_root=folder, max_loaded_bundles=1).app.state.inference.registry
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        models = list(pool.map(registry.model, [second] * 4))

    assert len(set(map(id, models))) == 1
    assert registry.model(first) is registry.active()
