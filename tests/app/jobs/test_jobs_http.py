"""Jobs and mappings over HTTP, in the embedded mode that needs nothing installed: SQLite and a queue in the process."""

import csv
import gzip
import io
import json
import tempfile
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from app.errors import FilesUnavailableError
from app.http.application import create_app
from app.jobs.records import TERMINAL
from app.settings import Settings
from models.decoding.regenerator import Regenerator
from tests.job_inputs import sequences as make_sequences
from tests.job_inputs import write_ndjson


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "inputs"
    folder.mkdir()
    return folder


@pytest.fixture
def start(serving, folder):
    """A function settings -> client of an application with jobs."""

    def begin(**settings):
        return serving(**{"input_roots": (f"file://{folder}",), "chunk_sequences": 8} | settings)

    return begin


@pytest.fixture
def mixed(folder):
    return write_ndjson(folder / "mixed.ndjson", make_sequences(27))


def submit(client, path, *, key=None, **body):
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(
        "/jobs", json={"target_domain": "kitchen", "source_uri": f"file://{path}"} | body, headers=headers
    )


def upload(client, content, name="mixed.ndjson", **fields):
    return client.post("/jobs", data={"target_domain": "kitchen"} | fields, files={"file": (name, content)})


def ended(client, answer, seconds=60):
    """The job of *answer*, once it has ended."""
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = client.get(answer.headers["Location"]).json()
        if job["state"] in TERMINAL:
            return job
        time.sleep(0.02)
    raise AssertionError(job)


def problem(answer, status, kind):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["type"] == f"urn:taesar:problem:{kind}"
    return found


# -- Jobs and their results


def test_a_job_gives_what_post_regenerate_gives(start, mixed):
    client = start()
    job = ended(client, submit(client, mixed))
    result = client.get(f"/jobs/{job['job_id']}/result", headers={"Accept": "application/x-ndjson"})
    online = client.post("/regenerate", json={"target_domain": "kitchen", "sequences": make_sequences(27)}).json()

    assert job["state"] == "succeeded"
    assert job["progress"] == {"num_chunks": 4, "chunks_done": 4, "share": 1.0}
    assert [json.loads(line) for line in result.text.splitlines()] == online["sequences"]


@pytest.mark.parametrize("by_upload", [False, True])
@pytest.mark.parametrize("purpose", ["live", "training"])
def test_a_job_says_what_its_sequences_are_and_the_rule_heeds_it(start, mixed, bundle, purpose, by_upload):
    """Under rule anticipate training rows lose what the experts recite; the two answers must differ somewhere."""
    client = start(rule="anticipate")
    answer = (
        upload(client, mixed.read_bytes(), purpose=purpose) if by_upload else submit(client, mixed, purpose=purpose)
    )
    job = ended(client, answer)
    result = client.get(f"/jobs/{job['job_id']}/result", headers={"Accept": "application/x-ndjson"})
    tokens = [
        [bundle.vocabulary.token_id(item["domain"], item["item_id"]) for item in sequence["items"]]
        for sequence in make_sequences(27)
    ]
    expected = {
        kind: [
            bundle.vocabulary.item_ids_of(one.token_ids)
            for one in Regenerator(bundle, "anticipate").regenerate(tokens, "kitchen", training_rows=kind == "training")
        ]
        for kind in ("live", "training")
    }

    assert job["purpose"] == purpose
    assert expected["live"] != expected["training"]
    assert [json.loads(line)["items"] for line in result.text.splitlines()] == expected[purpose]


def test_a_job_without_a_purpose_is_of_live_histories_and_an_unknown_one_is_422(start, mixed):
    client = start()
    assert ended(client, submit(client, mixed))["purpose"] == "live"
    problem(submit(client, mixed, purpose="both"), 422, "invalid-request")


def test_an_upload_gives_the_same_bytes_as_a_uri(start, mixed):
    client = start()
    jobs = [
        ended(client, submit(client, mixed)),
        ended(client, upload(client, mixed.read_bytes())),
        ended(client, upload(client, gzip.compress(mixed.read_bytes()), "anything", format="ndjson")),
    ]
    results = {client.get(f"/jobs/{job['job_id']}/result?format=parquet").content for job in jobs}

    assert [job["source"] for job in jobs[1:]] == ["mixed.ndjson", "anything"]
    assert len(results) == 1
    assert pq.read_table(io.BytesIO(results.pop())).num_rows == 27


@pytest.mark.parametrize(
    ("accept", "query", "content_type", "name"),
    [
        (None, "", "application/vnd.apache.parquet", "parquet"),
        ("text/csv", "", "text/csv; charset=utf-8", "csv"),
        ("text/csv;q=0.1, application/x-ndjson", "", "application/x-ndjson", "ndjson"),
        ("text/*", "", "text/csv; charset=utf-8", "csv"),
        ("text/csv", "?format=inter", "text/tab-separated-values; charset=utf-8", "inter"),
    ],
)
def test_the_result_comes_in_the_format_asked_for(start, mixed, accept, query, content_type, name):
    client = start()
    job = ended(client, submit(client, mixed))
    headers = {} if accept is None else {"Accept": accept}
    answer = client.get(f"/jobs/{job['job_id']}/result{query}", headers=headers)

    assert answer.headers["content-type"] == content_type
    assert answer.headers["content-disposition"] == f'attachment; filename="{job["job_id"]}.{name}"'


def test_no_format_that_the_client_accepts_is_406(start, mixed):
    client = start()
    job = ended(client, submit(client, mixed))

    problem(client.get(f"/jobs/{job['job_id']}/result", headers={"Accept": "image/png"}), 406, "not-acceptable")


def test_an_idempotency_key_makes_one_job_and_another_body_is_409(start, mixed, folder):
    client = start()
    first, again = submit(client, mixed, key="abc"), submit(client, mixed, key="abc")
    other = submit(client, mixed, key="abc", on_unknown="error")
    uploaded = [
        client.post(
            "/jobs",
            data={"target_domain": "kitchen"},
            files={"file": ("a.ndjson", content)},
            headers={"Idempotency-Key": "def"},
        )
        for content in (mixed.read_bytes(), mixed.read_bytes(), b"{}\n")
    ]

    assert first.json()["job_id"] == again.json()["job_id"]
    assert [answer.headers["Idempotent-Replayed"] for answer in (first, again)] == ["false", "true"]
    problem(other, 409, "idempotency-conflict")
    assert uploaded[0].json()["job_id"] == uploaded[1].json()["job_id"]
    problem(uploaded[2], 409, "idempotency-conflict")


# -- What is refused, and how


@pytest.mark.parametrize(
    ("uri", "status", "kind"),
    [
        ("file:///etc/passwd", 403, "source-not-allowed"),
        ("http://169.254.169.254/x.csv", 403, "source-not-allowed"),
        ("file://{folder}/../secret.ndjson", 422, "invalid-source"),
        ("file://{folder}/%2e%2e/secret.ndjson", 422, "invalid-source"),
        ("mixed.ndjson", 422, "invalid-source"),
        ("file://{folder}/missing.ndjson", 404, "source-not-found"),
        ("file://{folder}/mixed.zip", 415, "unsupported-format"),
        ("file://{folder}/really.csv", 422, "input-format"),
    ],
)
def test_each_bad_uri_has_its_error(start, mixed, folder, uri, status, kind):
    (folder / "mixed.zip").touch()
    (folder / "really.csv").write_bytes(b"PK\x03\x04")
    client = start()
    answer = client.post("/jobs", json={"target_domain": "kitchen", "source_uri": uri.format(folder=folder)})

    problem(answer, status, kind)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"target_domain": "kitchen"},
        {"target_domain": "kitchen", "source_uri": "file:///x", "extra": 1},
        {"target_domain": "kitchen", "source_uri": 7},
        {"target_domain": "kitchen", "source_uri": "file:///x", "format": "xlsx"},
        [],
    ],
)
def test_an_invalid_body_is_422_and_names_the_place(start, body):
    found = problem(start().post("/jobs", json=body), 422, "invalid-request")

    assert found["errors"][0]["location"][0] == "body"


def test_a_form_without_a_file_or_with_a_wrong_field_is_422(start, mixed):
    client = start()
    without = client.post("/jobs", files={"target_domain": (None, "kitchen")})
    wrong = upload(client, mixed.read_bytes(), on_unknown="guess")

    assert problem(without, 422, "invalid-request")["errors"][0]["location"] == ["body", "file"]
    assert problem(wrong, 422, "invalid-request")["errors"][0]["location"] == ["body", "on_unknown"]


def raw_form(client, name, parameters=""):
    """A form whose file's *name* are any bytes; *parameters* stand in the Content-Type."""
    content = (
        b'--b\r\nContent-Disposition: form-data; name="target_domain"\r\n\r\nkitchen\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n'
        b'{"user_id": "u", "items": []}\r\n--b--\r\n'
    )
    return client.post(
        "/jobs", content=content, headers={"Content-Type": f"multipart/form-data; boundary=b{parameters}"}
    )


@pytest.mark.parametrize(
    ("name", "charset"),
    [(b"a.ndjson", "undefined"), (b"a.ndjson", "punycode"), (b"+2AA-.ndjson", "utf-7")],
)
def test_a_form_in_a_charset_that_spells_no_text_is_422(start, name, charset):
    problem(raw_form(start(), name, f"; charset={charset}"), 422, "invalid-body")


@pytest.mark.parametrize("charset", ["utf-8", "nosuch", "hex"])
def test_a_form_in_any_other_charset_is_read(start, charset):
    client = start()

    assert ended(client, raw_form(client, b"a.ndjson", f"; charset={charset}"))["source"] == "a.ndjson"


def test_the_name_of_an_uploaded_file_is_kept_as_printable_text(start):
    client = start()

    assert ended(client, raw_form(client, b"a\x00b\x1b.ndjson"))["source"] == "a b .ndjson"


def test_an_unknown_target_is_404(start, mixed):
    client = start()

    problem(submit(client, mixed, target_domain="garden"), 404, "unknown-domain")
    problem(upload(client, mixed.read_bytes(), target_domain="garden"), 404, "unknown-domain")


def test_an_input_over_the_limit_is_413(start, mixed, folder):
    client = start(max_input_bytes=1024)

    problem(submit(client, mixed), 413, "request-too-large")
    problem(upload(client, mixed.read_bytes()), 413, "request-too-large")


def test_only_an_upload_may_be_as_large_as_an_input(start):
    client = start(max_body_bytes=1024)
    body = {"target_domain": "kitchen", "source_uri": "file:///" + "x" * 2000}

    problem(client.post("/jobs", json=body), 413, "request-too-large")


def test_a_bomb_fails_its_job_with_the_limits_name(start, folder):
    (folder / "bomb.ndjson.gz").write_bytes(
        gzip.compress(b"".join(f"{json.dumps(row)}\n".encode() for row in make_sequences(2)) + b" \n" * 8_000_000)
    )
    client = start(max_expanded_bytes=1 << 20)
    job = ended(client, submit(client, folder / "bomb.ndjson.gz"))

    assert job["state"] == "failed"
    assert "TAESAR_MAX_EXPANDED_BYTES" in job["reason"]


def test_too_many_unfinished_jobs_are_429(start, folder):
    long = write_ndjson(folder / "long.ndjson", make_sequences(3000))
    client = start(max_unfinished_jobs=1)
    first = submit(client, long)
    answer = submit(client, long)

    problem(answer, 429, "queue-full")
    assert int(answer.headers["Retry-After"]) > 0
    assert client.request("DELETE", first.headers["Location"]).json()["state"] == "cancelled"


# -- Cancelling, removing, listing, following


def test_a_cancelled_job_stops_and_counts_nothing(start, folder):
    client = start()
    answer = submit(client, write_ndjson(folder / "long.ndjson", make_sequences(3000)))
    path = answer.headers["Location"]
    while client.get(path).json()["progress"]["chunks_done"] == 0:
        time.sleep(0.01)
    cancelled = client.request("DELETE", path).json()
    time.sleep(0.3)
    later = client.get(path).json()

    assert cancelled["state"] == "cancelled"
    assert later == cancelled
    assert client.get("/mappings/kitchen").json()["mappings"] == []
    assert client.get(f"/mappings/kitchen?job_id={later['job_id']}").json()["mappings"] == []
    problem(client.get(f"{path}/result"), 409, "job-state")


def test_a_removed_job_is_gone_with_its_counts(start, mixed):
    client = start()
    job = ended(client, submit(client, mixed))
    before = client.get("/mappings/kitchen").json()["mappings"]
    removed = client.request("DELETE", f"/jobs/{job['job_id']}?remove=true")

    assert before != []
    assert removed.status_code == 204
    assert client.get("/mappings/kitchen").json()["mappings"] == []
    for path in ("", "/result", "/errors", "/events"):
        problem(client.get(f"/jobs/{job['job_id']}{path}"), 404, "unknown-job")


def test_jobs_come_in_pages(start, mixed):
    client = start()
    made = [submit(client, mixed).json()["job_id"] for _ in range(5)]
    found, cursor = [], ""
    while cursor is not None:
        answer = client.get(f"/jobs?limit=2{cursor and '&cursor=' + cursor}").json()
        assert len(answer["jobs"]) <= 2
        found += [job["job_id"] for job in answer["jobs"]]
        cursor = answer["next"]

    assert sorted(found) == sorted(made)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("path", ["/jobs", "/mappings/kitchen"])
@pytest.mark.parametrize("cursor", ["x", "WyJ4Il0=====", "W10", "WzFd", "bnVsbA", "%00", "WyIAIl0"])
def test_a_cursor_of_nobodys_is_422(start, mixed, path, cursor):
    client = start()
    ended(client, submit(client, mixed))
    answer = client.get(f"{path}?cursor={cursor}")

    if path == "/jobs" and cursor == "WyJ4Il0=====":  # one part, as a job's cursor has: an empty page, not an error
        assert answer.status_code == 200
    else:
        problem(answer, 422, "invalid-cursor")


def test_events_tell_progress_and_the_end(start, mixed):
    client = start()
    answer = submit(client, mixed)
    events = client.get(f"{answer.headers['Location']}/events")
    blocks = [block.split("\n") for block in events.text.strip().split("\n\n")]
    states = [(name, json.loads(data.removeprefix("data: "))["state"]) for name, data in blocks]

    assert events.headers["content-type"].startswith("text/event-stream")
    assert states[-1] == ("event: end", "succeeded")
    assert all(name == "event: progress" for name, _ in states[:-1])


def test_bad_rows_are_listed_with_line_and_reason(start, mixed):
    content = b"nonsense\n" + mixed.read_bytes()
    client = start(max_bad_row_share=0.5)
    job = ended(client, upload(client, content))
    [row] = [json.loads(line) for line in client.get(f"/jobs/{job['job_id']}/errors").text.splitlines()]

    assert (job["state"], job["counts"]["rows_bad"], job["counts"]["sequences"]) == ("succeeded", 1, 27)
    assert row["line"] == 1
    assert "Invalid JSON" in row["reason"]


# -- Mappings


def test_mappings_are_the_same_in_every_format_and_in_pages(start, mixed):
    client = start()
    ended(client, submit(client, mixed))
    lines, cursor = [], ""
    while cursor is not None:
        answer = client.get(f"/mappings/kitchen?limit=7{cursor and '&cursor=' + cursor}").json()
        lines += answer["mappings"]
        cursor = answer["next"]
    streamed = client.get("/mappings/kitchen", headers={"Accept": "application/x-ndjson"})
    parquet = client.get("/mappings/kitchen", headers={"Accept": "application/vnd.apache.parquet"})
    table = client.get("/mappings/kitchen", headers={"Accept": "text/csv"})

    assert len(lines) > 14
    assert [json.loads(line) for line in streamed.text.splitlines()] == lines
    assert pq.read_table(io.BytesIO(parquet.content)).to_pylist() == lines
    assert [row["target_item"] for row in csv.DictReader(io.StringIO(table.text))] == [
        line["target_item"] or "" for line in lines
    ]
    by_source = {}
    for line in lines:
        key = (line["source_domain"], line["source_item"])
        by_source[key] = by_source.get(key, 0) + line["share"]
    assert all(share == pytest.approx(1) for share in by_source.values())


def test_the_file_of_a_download_is_opened_and_closed_beside_the_event_loop(start, mixed, monkeypatch):
    """Either takes as long as the disk is busy with others' writing, a second perhaps."""
    client = start()
    ended(client, submit(client, mixed))
    threads, closed, temporary_file = [], threading.Event(), tempfile.TemporaryFile

    class Watched:
        def __init__(self, **options):
            threads.append(threading.get_ident())
            self._file = temporary_file(**options)
            self.write, self.fileno = self._file.write, self._file.fileno

        def close(self):
            threads.append(threading.get_ident())
            self._file.close()
            closed.set()

    monkeypatch.setattr("app.http.spools.tempfile.TemporaryFile", Watched)
    monkeypatch.setattr("app.http.spools.KEPT_SECONDS", 0.05)
    answer = client.get("/mappings/kitchen", headers={"Accept": "text/csv"})

    assert answer.text.startswith("source_domain")
    assert closed.wait(10)
    assert client.portal.call(threading.get_ident) not in threads


def test_mappings_that_have_not_changed_are_304(start, mixed):
    client = start()
    empty = client.get("/mappings/kitchen").headers["ETag"]
    ended(client, submit(client, mixed))
    first = client.get("/mappings/kitchen").headers["ETag"]
    same = client.get("/mappings/kitchen", headers={"If-None-Match": f'"other", {first}'})
    ended(client, submit(client, mixed))
    changed = client.get("/mappings/kitchen", headers={"If-None-Match": first})

    assert empty != first
    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", first)
    assert changed.status_code == 200
    assert changed.headers["ETag"] != first


def test_mappings_of_one_job_are_listed_alone(start, mixed, folder):
    client = start()
    first = ended(client, submit(client, mixed))
    ended(client, submit(client, write_ndjson(folder / "b.ndjson", make_sequences(9, seed=8))))
    alone = client.get(f"/mappings/kitchen?job_id={first['job_id']}&limit=1000").json()
    both = client.get("/mappings/kitchen?limit=1000").json()

    assert alone["job_id"] == first["job_id"]
    assert sum(line["count"] for line in alone["mappings"]) == first["counts"]["replaced"] + first["counts"]["deleted"]
    assert sum(line["count"] for line in both["mappings"]) > sum(line["count"] for line in alone["mappings"])
    problem(client.get(f"/mappings/food?job_id={first['job_id']}"), 404, "unknown-domain")


def test_mappings_are_filtered(start, mixed):
    client = start()
    ended(client, submit(client, mixed))
    everything = client.get("/mappings/kitchen?limit=1000").json()["mappings"]
    some = everything[3]
    query = f"source_domain={some['source_domain']}&source_item={some['source_item']}"

    assert client.get(f"/mappings/kitchen?{query}").json()["mappings"] == [
        line for line in everything if line["source_item"] == some["source_item"]
    ]


def test_mappings_of_unknown_domains_and_jobs_are_404(start):
    client = start()

    problem(client.get("/mappings/garden"), 404, "unknown-domain")
    assert "unknown domain 'Food/Drink'" in client.get("/mappings/Food%2FDrink").json()["detail"]
    problem(client.get(f"/mappings/kitchen?job_id={'0' * 32}"), 404, "unknown-job")
    problem(client.get("/mappings/kitchen?source_item=%00"), 422, "invalid-request")
    problem(client.get("/mappings/kitchen?source_item=b01"), 422, "invalid-request")
    problem(client.get("/mappings/kitchen", headers={"Accept": "image/png"}), 406, "not-acceptable")


# -- Start, restart, readiness


def test_without_a_model_a_job_is_503(start, mixed):
    client = start(bundle=None)

    problem(submit(client, mixed), 503, "model-unavailable")


def test_unfinished_jobs_go_on_when_the_service_starts_again(start, serving, folder, tmp_path, bundle):
    """Stopped in the middle of a job, started again on the same data: the result is that of an undisturbed run."""
    long = write_ndjson(folder / "long.ndjson", make_sequences(800))
    undisturbed = start(data=tmp_path / "undisturbed")
    expected = ended(undisturbed, submit(undisturbed, long))
    settings = Settings(
        bundle=bundle.directory,
        device="cpu",
        data=tmp_path / "data",
        input_roots=(f"file://{folder}",),
        chunk_sequences=8,
        shutdown_seconds=30,
    )
    app = create_app(settings)
    with undisturbed.portal.wrap_async_context_manager(app.router.lifespan_context(app)):
        client = type(undisturbed)(undisturbed.portal, app)
        answer = submit(client, long)
        while client.get(answer.headers["Location"]).json()["progress"]["chunks_done"] < 3:
            time.sleep(0.01)
    restarted = start()
    between = restarted.get(answer.headers["Location"]).json()["state"]
    job = ended(restarted, answer)

    assert between == "running"
    assert (job["state"], job["counts"]) == ("succeeded", expected["counts"])
    assert (
        restarted.get(f"/jobs/{job['job_id']}/result").content
        == undisturbed.get(f"/jobs/{expected['job_id']}/result").content
    )
    assert (
        restarted.get("/mappings/kitchen?limit=5000").json() == undisturbed.get("/mappings/kitchen?limit=5000").json()
    )


@pytest.mark.parametrize("job_id", ["%00", "x", "0" * 32, "g" * 32, "0" * 33])
def test_an_id_of_no_job_is_404(start, job_id):
    problem(start().get(f"/jobs/{job_id}"), 404, "unknown-job")


def test_readiness_names_database_queue_and_files(start):
    assert {"sql", "queue", "files"} <= start().get("/readyz").json()["checks"].keys()


def test_readiness_tells_a_stranger_neither_address_nor_password(start):
    client = start(redis_url="redis://:geheim@127.0.0.1:1/0")
    answer = client.get("/readyz")

    assert answer.status_code == 503
    assert answer.json()["checks"]["queue"] == "Redis does not answer: ConnectionError"
    assert not [word for word in ("geheim", "127.0.0.1", ":1") if word in answer.text]


# -- Storage that is damaged, full or away


def storage_of(client):
    return client.app.state.job_parts.storage


@pytest.mark.parametrize("result_format", ["parquet", "ndjson", "csv", "inter"])
@pytest.mark.parametrize("damage", ["swapped", "missing"])
def test_a_damaged_result_is_a_problem_and_never_a_broken_or_foreign_answer(start, mixed, damage, result_format):
    client = start()
    job_id = ended(client, submit(client, mixed))["job_id"]
    names = client.app.state.job_parts.jobs.output_names(job_id)
    storage = storage_of(client)
    if damage == "swapped":
        storage.write(f"{job_id}/{names[-1]}", storage.read(f"{job_id}/{names[0]}"))
    else:
        storage.delete_folder(f"{job_id}/output")
    found = problem(client.get(f"/jobs/{job_id}/result?format={result_format}"), 410, "result-damaged")

    assert names[-1 if damage == "swapped" else 0] in found["detail"]


def test_while_the_storage_is_full_uploads_and_readiness_are_503_and_a_running_job_waits(start, mixed, monkeypatch):
    client = start(max_chunk_attempts=1)
    storage = storage_of(client)
    full = FilesUnavailableError("jobs' files cannot be read or written: No space left on device")

    def fail(*_):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write", fail)
        patch.setattr(storage, "write_stream", fail)
        refused = problem(upload(client, mixed.read_bytes()), 503, "files-unavailable")
        unready = client.get("/readyz")
        answer = submit(client, mixed)
        while (job := client.get(answer.headers["Location"]).json())["reason"] is None:
            time.sleep(0.02)
    done = ended(client, answer)

    assert refused["detail"] == str(full)
    assert (unready.status_code, unready.json()["checks"]["files"]) == (503, str(full))
    assert (job["state"], job["reason"]) == ("running", f"waiting: FilesUnavailableError: {full}")
    assert (done["state"], done["reason"]) == ("succeeded", None)


# -- Inputs of any layout


def test_a_job_of_several_files_without_headers_equals_that_of_the_sequences(start, folder):
    """One CSV a domain, rows in no order, times in milliseconds: the same sequences as in JSON lines."""
    client = start()
    made = make_sequences(12)
    rows = {"books": [], "food": [], "kitchen": []}
    for sequence in made:
        for place, item in enumerate(sequence["items"]):
            line = f"{sequence['user_id']},{item['item_id']},5.0,{1_300_000_000_000 + 1000 * place}\n"
            rows[item["domain"]].append(line)
    for domain, lines in rows.items():
        (folder / f"ratings_{domain}.csv").write_text("".join(reversed(lines)))
    plain = ended(client, submit(client, write_ndjson(folder / "plain.ndjson", made)))
    places = [f"{domain}=file://{folder}/ratings_{domain}.csv" for domain in rows]
    body = {"target_domain": "kitchen", "sources": places, "where": ["rating>=4"]}
    several = ended(client, client.post("/jobs", json=body))

    assert several["state"] == plain["state"] == "succeeded"
    assert _items(client, several) == _items(client, plain)
    assert several["counts"]["rows_read"] == sum(len(sequence["items"]) for sequence in made)


def _items(client, job):
    lines = client.get(f"/jobs/{job['job_id']}/result?format=ndjson").text.splitlines()
    return {row["user_id"]: row["items"] for row in map(json.loads, lines)}


@pytest.mark.parametrize("no", ["false", "False"])
def test_an_upload_is_described_by_fields_of_the_form(start, no):
    client = start()
    content = b"b01;u1;1300000002\nb02;u1;1300000001\n"
    fields = {"columns": "item=1,user=2,time=3", "separator": ";", "header": no, "domain": "books"}
    job = ended(client, upload(client, content, "log.txt", **fields))

    assert (job["state"], job["format"], job["counts"]["rows_read"]) == ("succeeded", "csv", 2)
    assert list(_items(client, job)) == ["u1"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"source_uri": "file:///x", "sources": ["file:///y"]}, "either source_uri or sources"),
        ({"source_uri": None}, "either source_uri or sources"),
        ({"source_uri": "file:///x", "columns": "who"}, "columns are user=NAME"),
        ({"source_uri": "file:///x", "where": ["rating"]}, "no condition"),
        ({"source_uri": "file:///x", "preset": "netflix"}, "no preset 'netflix'"),
    ],
)
def test_an_input_that_is_described_wrongly_is_422(start, body, reason):
    found = problem(start().post("/jobs", json={"target_domain": "kitchen"} | body), 422, "invalid-source")

    assert reason in found["detail"]


def test_a_parquet_upload_that_ends_the_process_that_reads_it_is_422_and_the_service_goes_on(start):
    client = start()
    found = problem(
        upload(client, (Path(__file__).parents[2] / "layouts" / "aborting.parquet").read_bytes(), "a.parquet"),
        422,
        "input-format",
    )

    assert "ended the process that read it (SIGABRT)" in found["detail"]
    assert client.get("/healthz").status_code == 200


def test_a_job_whose_items_are_mostly_unknown_is_warned_of(start, folder):
    client = start()
    sequences = [
        {"user_id": "u", "items": [{"item_id": name, "domain": "books"} for name in ("b01", "nothing", "nobody", "x")]}
    ]
    odd = ended(client, submit(client, write_ndjson(folder / "odd.ndjson", sequences)))
    usual = ended(client, submit(client, write_ndjson(folder / "usual.ndjson", make_sequences(5))))

    assert usual["warnings"] == []
    assert [warning.split(" are ")[0] for warning in odd["warnings"]] == ["3 of 4 items"]
