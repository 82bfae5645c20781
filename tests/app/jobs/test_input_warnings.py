"""What is odd about a job's input is in the job, as `taesar prepare` says it; times come back as the log has them."""

import io
import json
import time

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.jobs.formats import BadRow, SourceLimits
from app.jobs.reading_process import read_in_process
from app.jobs.records import TERMINAL
from models.data.reading.layouts import Layout
from models.data.reading.places import files_of

LIMITS = SourceLimits(max_bytes=1 << 30, max_expanded_bytes=1 << 30, max_items=100)
HEADER = "user,item,domain,timestamp\n"
PLAIN = HEADER + "u,b01,books,1300000000\nu,k01,kitchen,1300000001\nu,b02,books,1300000002\n"
UNITS = HEADER + "".join(
    f"u,{domain[0]}{n},{domain},{(1300000000 + n) * scale}\n"
    for domain, scale in (("books", 1), ("kitchen", 1000))
    for n in range(4)
)


def rows_and_warnings(path):
    found = []
    rows = list(read_in_process(files_of([path]), Layout(), LIMITS, warn=found.append))
    return rows, found


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (PLAIN, []),
        (HEADER + "u,b01,books,5\n", ["one domain only (books)"]),
        (HEADER + "u,b01,books,5\nv,k01,kitchen,5\n", ["no user has rows in every domain"]),
        (UNITS, ["the times of books"]),
        ("user,item,domain\nu,b01,books\nu,k01,kitchen\n", ["a.csv: no column for the time: the order of the rows"]),
        (HEADER + "".join(f"u,i{n},{n}.5,{n}\n" for n in range(4)), ["the domain column holds numbers as ratings are"]),
        (HEADER + "".join(f"u,i{n},d{n},{n}\n" for n in range(300)), ["the domain column has 101 values"]),
    ],
)
def test_odd_interactions_are_told(tmp_path, content, says):
    (tmp_path / "a.csv").write_text(content)
    _, warnings = rows_and_warnings(tmp_path / "a.csv")

    assert [next((say for say in says if say in warning), warning) for warning in warnings] == says


def test_sequences_bring_their_times_and_a_wrong_one_is_a_bad_row(tmp_path):
    items = [{"item_id": "b01", "domain": "books"}, {"item_id": "k01", "domain": "kitchen"}]
    times = [[5, 7.5], None, ["1970-01-02", "1970-01-03T00:00:00Z"], [5], [5, "soon"], [5, 10**400]]
    lines = [{"user_id": "u", "items": items, "timestamps": value} for value in times]
    (tmp_path / "a.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows, _ = rows_and_warnings(tmp_path / "a.ndjson")

    assert [row.reason if isinstance(row, BadRow) else list(row.times) for row in rows] == [
        [5.0, 7.5],
        [],
        [86400.0, 172800.0],
        "1 timestamps of 2 items",
        "position 1: the timestamp is no time",
        "position 1: the timestamp is no time",
    ]


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.timestamp("ms")])
def test_lists_of_times_in_parquet_are_those_of_the_items(tmp_path, kind):
    times = pa.array([[5000, 7000], None, [9000]], pa.list_(pa.int64())).cast(pa.list_(kind))
    lists = {"item_ids": [["b01", "k01"], ["b02"], ["k02"]], "domains": [["books", "kitchen"], ["books"], ["kitchen"]]}
    table = pa.table({"user_id": ["u", "v", "w"], **lists, "timestamps": times})
    pq.write_table(table, tmp_path / "a.parquet")
    rows, _ = rows_and_warnings(tmp_path / "a.parquet")
    scale = 1000 if pa.types.is_timestamp(kind) else 1

    assert [[time * scale for time in row.times] for row in rows] == [[5000.0, 7000.0], [], [9000.0]]


@pytest.mark.parametrize(("fraction", "kind"), [("", pl.Int64), (".5", pl.Float64)])
def test_results_have_the_logs_numbers_for_times_and_the_job_its_warnings(serving, tmp_path, fraction, kind):
    """One user's time with a fraction makes all of them numbers with one."""
    content = PLAIN.replace("1300000002", f"1300000002{fraction}").replace("kitchen", "books")
    content += "z,b09,books,1300000009\n"
    (tmp_path / "log.csv").write_text(content)
    client = serving(input_roots=(f"file://{tmp_path}",))
    body = {"target_domain": "books", "source_uri": f"file://{tmp_path}/log.csv"}
    job = ended(client, client.post("/jobs", json=body).headers["Location"])
    result = client.get(f"/jobs/{job['job_id']}/result", params={"view": "interactions", "format": "parquet"}).content
    table = pl.read_parquet(io.BytesIO(result))

    assert job["state"] == "succeeded"
    assert any("one domain only (books)" in warning for warning in job["warnings"])
    assert table.schema["timestamp"] == kind
    assert table["timestamp"].to_list() == [1300000000, 1300000001, float(f"1300000002{fraction}"), 1300000009]


def ended(client, location, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = client.get(location).json()
        if job["state"] in TERMINAL:
            return job
        time.sleep(0.02)
    raise AssertionError(job)
