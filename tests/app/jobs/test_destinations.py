"""Results go where a job says, whole or not at all, and nowhere else; columns of the input come along."""

import csv
import io
import json
import os
import time
import uuid

import fsspec
import polars as pl
import pyarrow.parquet as pq
import pytest

from app.errors import DestinationNotAllowedError, FilesUnavailableError, InvalidSourceError
from app.jobs.destinations import DestinationRoots
from app.jobs.records import TERMINAL

ROWS = [
    ("u1", "b01", "books", 10, "5"),
    ("u1", "k01", "kitchen", 20, "NA"),
    ("u1", "f02", "food", 30, ""),
    ("u1", "k99", "kitchen", 40, "3"),
    ("u2", "k02", "kitchen", 5, "4"),
    ("u2", "b03", "books", 6, "2"),
    ("u2", "b04", "books", 7, "1"),
]


@pytest.fixture
def folders(tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("user", "item", "domain", "timestamp", "rating"), *ROWS])
    (tmp_path / "in" / "log.csv").write_text(text.getvalue())
    return tmp_path


@pytest.fixture
def client(serving, folders):
    store = f"memory://{uuid.uuid4().hex}"
    return serving(
        input_roots=(f"file://{folders}/in",), output_roots=(f"file://{folders}/out", store), chunk_sequences=1
    ), store


def submitted(client, folders, **options):
    body = {"target_domain": "kitchen", "source_uri": f"file://{folders}/in/log.csv"} | options
    return client.post("/jobs", json=body)


def ended(client, answer, seconds=60):
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = client.get(answer.headers["Location"]).json()
        if job["state"] in TERMINAL:
            return job
        time.sleep(0.02)
    raise AssertionError(job)


def download(client, job, **query):
    return client.get(f"/jobs/{job['job_id']}/result", params=query).content


def test_the_result_is_where_the_job_says_once_it_has_succeeded(client, folders):
    client, _ = client
    uri = f"file://{folders}/out/march/kitchen.parquet"
    job = ended(client, submitted(client, folders, result_uri=uri, result_view="interactions", carry=["rating"]))
    written = (folders / "out" / "march" / "kitchen.parquet").read_bytes()
    table = pl.read_parquet(io.BytesIO(written))
    kept = table.filter(pl.col("origin") == "kept")
    replaced = table.filter(pl.col("origin") == "replaced")
    rating_of = {(user, item): rating for user, item, _, _, rating in ROWS}

    assert job["state"] == "succeeded"
    assert (job["result_uri"], job["result_format"], job["carry"]) == (uri, "parquet", ["rating"])
    assert written == download(client, job, view="interactions", format="parquet")
    assert kept.select("user", "item", "timestamp").rows() == [r[:2] + r[3:4] for r in ROWS if r[2] == "kitchen"]
    assert kept.height == job["counts"]["kept"] + job["counts"]["unknown_kept"]
    assert replaced.height == job["counts"]["replaced"] > 0
    assert table["rating"].to_list() == [
        rating_of[user, source or item] or None
        for user, item, source in table.select("user", "item", "source_item").rows()
    ]
    assert [path.name for path in (folders / "out" / "march").iterdir()] == ["kitchen.parquet"]


@pytest.mark.parametrize("view", ["sequences", "interactions"])
@pytest.mark.parametrize("name", ["r.csv", "r.ndjson", "r.inter", "r.parquet"])
def test_every_format_is_written_as_it_is_downloaded_also_to_an_object_store(client, folders, name, view):
    client, store = client
    uri = f"{store}/{name}"
    job = ended(client, submitted(client, folders, result_uri=uri, result_view=view))

    assert fsspec.filesystem("memory").cat(uri) == download(client, job, view=view, format=name.split(".")[1])


def test_a_csv_for_pipelines_keeps_identifiers_that_a_download_defuses(client, folders):
    client, store = client
    (folders / "in" / "log.csv").write_text("user,item,domain\n=u,k01,kitchen\n=u,b01,books\n")
    job = ended(client, submitted(client, folders, result_uri=f"{store}/r.csv", result_view="interactions"))
    written = list(csv.DictReader(io.StringIO(fsspec.filesystem("memory").cat(f"{store}/r.csv").decode())))

    assert {row["user"] for row in written} == {"=u"}
    assert {row["timestamp"] for row in written} == {""}
    assert b"'=u" in download(client, job, view="interactions", format="csv")


def test_frames_of_libraries_are_results_too(client, folders):
    client, _ = client
    job = ended(client, submitted(client, folders))
    frames = {name: pq.read_table(io.BytesIO(download(client, job, format=name))) for name in ("rectools", "replay")}
    refused = client.get(f"/jobs/{job['job_id']}/result", params={"format": "replay", "view": "sequences"})

    assert frames["rectools"].column_names == ["user_id", "item_id", "weight", "datetime"]
    assert frames["replay"].column_names == ["user_id", "item_id", "rating", "timestamp"]
    assert frames["replay"]["item_id"].to_pylist() == frames["rectools"]["item_id"].to_pylist()
    assert refused.status_code == 415


@pytest.mark.parametrize(
    ("uri", "status"),
    [
        ("file:///etc/passwd.csv", 403),
        ("{out}/../in/x.csv", 422),
        ("{out}/link/x.csv", 403),
        ("{in}/x.csv", 403),
        ("s3://elsewhere/x.csv", 403),
        ("x.csv", 422),
        ("{out}/x.docx", 415),
    ],
)
def test_a_place_that_is_not_allowed_is_refused_at_once(client, folders, uri, status):
    client, _ = client
    (folders / "out" / "link").symlink_to(folders / "in")
    places = {"in": f"file://{folders}/in", "out": f"file://{folders}/out"}
    answer = submitted(client, folders, result_uri=uri.format(**places))

    assert answer.status_code == status
    assert client.get("/jobs").json()["jobs"] == []


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"result_view": "interactions"}, id="a view of nothing"),
        pytest.param({"carry": ["origin"]}, id="a column of the result itself"),
        pytest.param({"carry": ["rating", "rating"]}, id="twice"),
        pytest.param({"carry": ["nosuch"]}, id="no column of the input"),
    ],
)
def test_options_that_cannot_be_are_422(client, folders, options):
    client, _ = client
    assert submitted(client, folders, **options).status_code == 422


def test_a_result_that_cannot_be_written_is_tried_again_and_arrives(client, folders):
    """A file stands where a folder should be; then it is gone."""
    client, _ = client
    (folders / "out" / "march").write_text("in the way")
    answer = submitted(client, folders, result_uri=f"file://{folders}/out/march/r.csv")
    deadline = time.monotonic() + 30
    while (job := client.get(answer.headers["Location"]).json())["reason"] is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (job["state"], job["progress"]["share"]) == ("running", 1.0)
    assert job["reason"].startswith("waiting: FilesUnavailableError: the result cannot be written to ")
    (folders / "out" / "march").unlink()

    assert ended(client, answer)["state"] == "succeeded"
    assert (folders / "out" / "march" / "r.csv").is_file()


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path):
    roots = DestinationRoots((f"file://{tmp_path}",))
    (tmp_path / "r.csv").write_text("before")

    def parts():
        yield b"half"
        raise OSError(28, os.strerror(28))

    with pytest.raises(FilesUnavailableError, match="No space left"):
        roots.write(f"file://{tmp_path}/r.csv", parts())
    assert (tmp_path / "r.csv").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


@pytest.mark.parametrize("name", [f"{'a' * 300}.csv", f"{'a' * 250}.csv", f"{'a' * 300}/r.csv"])
def test_a_name_that_no_file_may_have_is_refused_and_not_waited_for(tmp_path, name):
    """The second fits by itself, and not with what is put before it while it is written."""
    roots = DestinationRoots((f"file://{tmp_path}",))

    with pytest.raises(InvalidSourceError, match="File name too long"):
        roots.write(f"file://{tmp_path}/{name}", [b"rows"])
    assert not list(tmp_path.iterdir())


def test_nothing_is_allowed_by_default(tmp_path):
    with pytest.raises(DestinationNotAllowedError, match="TAESAR_OUTPUT_ROOTS"):
        DestinationRoots(()).check(f"file://{tmp_path}/r.csv")
    with pytest.raises(InvalidSourceError):
        DestinationRoots((f"file://{tmp_path}",)).check(f"file://{tmp_path}/a/../r.csv")


def test_an_upload_carries_columns_along_too(client, folders):
    client, _ = client
    content = (folders / "in" / "log.csv").read_bytes()
    answer = client.post(
        "/jobs", data={"target_domain": "kitchen", "carry": "rating"}, files={"file": ("log.csv", content)}
    )
    job = ended(client, answer)
    rows = [json.loads(line) for line in download(client, job, format="ndjson", view="interactions").splitlines()]

    assert [row["rating"] for row in rows if row["item"] in ("k01", "k99")] == ["NA", "3"]
