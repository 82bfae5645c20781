"""The audit record: every act with its key and request, none without its act, and no entry changes."""

import json
import sys
import time

import pytest
from sqlalchemy import delete, text, update
from sqlalchemy.exc import DBAPIError

from app.access.audit import Act, append_act, entries_after, record_keys
from app.access.key_file import ALL_SCOPES, AccessKey, KeyScope, add_key, hash_of, remove_key
from app.cli.taesar import main
from app.storage import schema
from app.storage.database import open_engine, reading, writing
from app.storage.tables import audit

SHOP = {"Authorization": "Bearer shop-secret"}


def key(name, secret, *scopes):
    return AccessKey(name, frozenset(scopes) or ALL_SCOPES, hash_of(secret))


def told(engine, *names):
    return [tuple(getattr(entry, name) for name in names) for entry in entries_after(engine)]


def test_no_entry_can_be_changed_or_removed(engine):
    with writing(engine) as connection:
        append_act(connection, Act.SUBMIT, "1", source="a.csv")
    for statement in (update(audit).values(subject="2"), delete(audit), text("DELETE FROM audit")):
        with pytest.raises(DBAPIError, match="the audit record only grows"), writing(engine) as connection:
            connection.execute(statement)

    assert told(engine, "action", "subject", "detail") == [("job.submit", "1", {"source": "a.csv"})]


def test_keys_that_came_went_or_changed_are_recorded_once_whoever_notices(engine):
    first = [key("shop", b"1"), key("ops", b"2", KeyScope.ADMIN)]
    second = [key("shop", b"other"), key("ops", b"2", KeyScope.ADMIN, KeyScope.JOBS), key("night", b"3")]
    for keys in (first, first, second, second, []):
        record_keys(engine, keys)

    assert told(engine, "action", "subject") == [
        ("key.added", "ops"),
        ("key.added", "shop"),
        ("key.removed", "ops"),
        ("key.removed", "shop"),
        ("key.added", "night"),
        ("key.added", "ops"),
        ("key.added", "shop"),
        ("key.removed", "night"),
        ("key.removed", "ops"),
        ("key.removed", "shop"),
    ]
    with reading(engine) as connection:
        assert hash_of(b"1") not in str(connection.execute(text("SELECT * FROM audit")).all())


@pytest.fixture
def service(serving, tmp_path, bundle):
    """A service with a key for everything, and a function that says what its record has."""
    add_key(tmp_path / "keys", key("shop", b"shop-secret"))
    client = serving(api_keys_file=tmp_path / "keys", bundle_root=bundle.directory.parent, key_unfinished_jobs=1)
    return client, lambda *names: told(client.app.state.job_parts.engine, *names)


def wait_until(condition):
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_act_over_http_is_recorded_with_its_key_and_request(service, bundle, tmp_path):
    client, record = service
    wait_until(lambda: record("action") == [("key.added",)])
    row = {"user_id": "u", "items": [{"item_id": "b01", "domain": "books"}]}
    files = {"file": ("in.ndjson", json.dumps(row).encode())}
    asked = {"data": {"target_domain": "kitchen"}, "files": files}
    job_id = client.post("/jobs", **asked, headers=SHOP | {"X-Request-ID": "r-submit"}).json()["job_id"]
    wait_until(lambda: client.get(f"/jobs/{job_id}", headers=SHOP).json()["state"] == "succeeded")
    client.request("DELETE", f"/jobs/{job_id}", headers=SHOP | {"X-Request-ID": "r-refused"})
    client.request("DELETE", f"/jobs/{job_id}?remove=true", headers=SHOP | {"X-Request-ID": "r-remove"})
    client.post(f"/models/{bundle.version}/activate", headers=SHOP | {"X-Request-ID": "r-activate"})
    add_key(tmp_path / "keys", key("next", b"next-secret"))
    remove_key(tmp_path / "keys", "shop")
    wait_until(lambda: ("key.removed", "shop") in record("action", "subject"))

    assert record("key_name", "request_id", "action", "subject") == [
        (None, None, "key.added", "shop"),
        ("shop", "r-submit", "job.submit", job_id),
        ("shop", "r-remove", "job.remove", job_id),
        ("shop", "r-activate", "model.serve", bundle.version),
        (None, None, "key.removed", "shop"),
        (None, None, "key.added", "next"),
    ]


def test_the_command_prints_an_object_a_line_and_only_what_is_new(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TAESAR_DATA", str(tmp_path))
    engine = open_engine(f"sqlite:///{tmp_path / 'taesar.db'}")
    schema.upgrade(engine)
    with writing(engine) as connection:
        for job in ("1", "2", "3"):
            append_act(connection, Act.CANCEL, job)
    engine.dispose()

    def printed(*arguments):
        monkeypatch.setattr(sys, "argv", ["taesar", "audit", *arguments])
        with pytest.raises(SystemExit):
            main()
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert [entry["subject"] for entry in printed()] == ["1", "2", "3"]
    assert [entry["subject"] for entry in printed("--after", "2")] == ["3"]
