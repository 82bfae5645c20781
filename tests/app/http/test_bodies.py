"""Bodies that would take long to validate are refused while they come, and never validated."""

import importlib
import json
from pkgutil import iter_modules

import pytest

import app.http.bodies as bodies
from app.http import routes
from app.settings import Settings

MEGABYTES = 8 * 1024 * 1024 - 100
START = b'{"target_domain":"kitchen","sequences":['


def filled(unit, start=START, end=b"]}"):
    return start + b",".join([unit] * ((MEGABYTES - len(start)) // (len(unit) + 1))) + end


FULL = {
    "empty sequences": (filled(b'{"items":[]}'), 413),
    "empty sequences with user ids": (filled(b'{"user_id":"a","items":[]}'), 413),
    "items": (filled(b'{"item_id":"a","domain":"b"}', START + b'{"items":[', b"]}]}"), 413),
    "unknown keys": (b"{" + b",".join(b'"k%d":0' % n for n in range(600_000)) + b"}", 422),
    "unknown keys of a sequence": (START + b"{" + b",".join(b'"k%d":0' % n for n in range(600_000)) + b"}]}", 422),
    "unknown keys of an item": (
        START + b'{"items":[{' + b",".join(b'"k%d":0' % n for n in range(600_000)) + b"}]}]}",
        422,
    ),
    "one key each unknown": (filled(b'{"a":0}'), 413),
    "scalars": (filled(b"1"), 413),
    "nested": (b"[" * MEGABYTES, 422),
    "no json": (b'"' + b"\\" * MEGABYTES, 422),
}


@pytest.fixture
def validations(monkeypatch):
    """Sizes of the bodies that were validated."""
    sizes = []
    real = bodies.validated

    def record(kind, content):
        sizes.append(len(content))
        return real(kind, content)

    monkeypatch.setattr(bodies, "validated", record)
    return sizes


@pytest.mark.parametrize("name", FULL)
def test_a_body_of_too_many_parts_is_refused_before_anything_is_built_of_it(client, validations, name):
    body, status = FULL[name]

    async def parts():
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    answer = client.post("/regenerate", content=parts(), headers={"Content-Type": "application/json"})

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 2048
    assert validations in ([], [len(body)] if name == "no json" else [])


def test_a_body_at_every_limit_is_answered(serving, validations):
    limits = {"max_sequences_per_request": 64, "max_items_per_sequence": 256, "max_items_per_request": 64 * 256}
    items = [{"item_id": "b01", "domain": "books"}] * 256
    body = {"target_domain": "kitchen", "sequences": [{"user_id": '"{[,', "items": items}] * 64}
    answer = serving(**limits).post("/regenerate", json=body)

    assert answer.status_code == 200
    assert len(answer.json()["sequences"]) == 64
    assert len(validations) == 1


def test_seven_megabytes_of_unknown_keys_describe_no_job(client, validations):
    body = b"{" + b",".join(b'"k%d":0' % n for n in range(600_000)) + b"}"
    answer = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 413
    assert validations == []


def test_a_field_of_a_form_is_no_longer_than_that_of_a_body(client):
    files = {"file": ("in.csv", b"user,item\n")}
    answer = client.post("/jobs", data={"target_domain": "x" * 100_000}, files=files)

    assert answer.status_code == 422


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
@pytest.mark.parametrize("path", ["/regenerate", "/jobs"])
def test_a_body_that_is_not_said_to_be_json_is_415(client, payload, path, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    answer = client.post(path, content=json.dumps(payload("k01")), headers=headers)

    assert answer.status_code == 415
    assert answer.json()["type"] == "urn:taesar:problem:content-type"


def test_the_bound_on_all_bodies_admits_the_largest_of_one():
    with pytest.raises(ValueError, match="TAESAR_MAX_RECEIVING_BYTES is below TAESAR_MAX_BODY_BYTES"):
        Settings(max_receiving_bytes=2048, max_body_bytes=4096)


def test_no_route_leaves_its_body_to_the_framework():
    """It would read all of it, and build an object for every part, before it asks whether there may be so many."""
    modules = [importlib.import_module(f"{routes.__name__}.{found.name}") for found in iter_modules(routes.__path__)]
    found = {route.path: route.body_field for module in modules for route in module.router.routes}

    assert {"/regenerate", "/jobs", "/models/{version}/canary"} <= found.keys()
    assert [path for path, field in found.items() if field is not None] == []


def test_a_body_of_unknown_keys_is_refused_before_it_is_read_to_its_end(client):
    body = b"{" + b",".join(b'"k%d":0' % n for n in range(100_000)) + b"}"
    for path in ("/jobs", "/models/x/canary"):
        assert client.post(path, content=body, headers={"Content-Type": "application/json"}).status_code == 413, path
