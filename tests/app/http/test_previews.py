"""How an upload would be read, before it is a job."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

LOG = "reviewerID,asin,domain,unixReviewTime\nu1,b01,books,1000\nu1,f02,food,1001\n"


@pytest.fixture
def preview(client):
    def ask(content, name="log.csv", **fields):
        data = {"target_domain": "kitchen", **fields}
        content = content if isinstance(content, bytes) else content.encode()
        return client.post("/previews", data=data, files={"file": (name, content)})

    return ask


def roles(answer):
    return {column["name"]: column["role"] for column in answer.json()["columns"]}


def test_columns_are_found_by_their_usual_names_and_rows_are_shown(preview):
    answer = preview(LOG)

    assert roles(answer) == {"reviewerID": "user", "asin": "item", "domain": "domain", "unixReviewTime": "timestamp"}
    assert answer.json()["rows"] == [["u1", "b01", "books", "1000"], ["u1", "f02", "food", "1001"]]
    assert answer.json()["problem"] is None


def test_columns_that_are_named_are_taken(preview):
    answer = preview("who,what\nu1,b01\n", domain="books", columns="user=who,item=what")

    assert roles(answer) == {"who": "user", "what": "item"}
    assert answer.json()["problem"] is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [("who,what\nu1,b01\n", "no column for the user"), ("user,item\nu1,b01\n", "no column says the domain")],
)
def test_what_would_be_refused_is_told_beside_the_rows(preview, content, problem):
    answer = preview(content)

    assert problem in answer.json()["problem"]
    assert answer.json()["rows"] == [["u1", "b01"]]


def test_columns_without_a_header_are_called_by_their_places(preview):
    assert roles(preview("u1,b01,1000\nu1,b02,1001\n", domain="books")) == {"1": "user", "2": "item", "3": "timestamp"}
    unknown = preview("u1,b01,x,y,1000\nu1,b02,x,y,1001\n", domain="books")
    assert roles(unknown) == dict.fromkeys("12345")
    assert "say which they are by their places" in unknown.json()["problem"]
    named = preview("u1,b01,x,y,1000\nu1,b02,x,y,1001\n", domain="books", columns="user=1,item=2,timestamp=5")
    assert named.json()["problem"] is None
    assert roles(named)["5"] == "timestamp"


def test_the_beginning_of_a_packed_file_is_enough(preview):
    whole = gzip.compress((LOG + "".join(f"u{n},f{n % 20:02d},food,{n}\n" for n in range(100_000))).encode())
    answer = preview(whole[: len(whole) // 2], name="log.csv.gz")

    assert roles(answer)["asin"] == "item"
    assert len(answer.json()["rows"]) == 8


def test_sequences_are_told_from_interactions(preview):
    line = {"user_id": "u1", "items": [{"item_id": "b01", "domain": "books"}]}
    answer = preview(json.dumps(line), name="in.ndjson").json()

    assert (answer["holds"], answer["problem"]) == ("sequences", None)


def test_parquet_says_what_would_be_refused(preview, tmp_path):
    pq.write_table(pa.table({"who": ["u1"], "what": ["b01"]}), tmp_path / "in.parquet")
    answer = preview((tmp_path / "in.parquet").read_bytes(), name="in.parquet").json()

    assert answer["format"] == "parquet"
    assert "who" in answer["problem"]


@pytest.mark.parametrize("content", [b"", b"\x1f\x8bnot gzip", b"\xff\xfe\x00", b"PAR1 no footer", b"\n\n\n", b'{"a":'])
def test_what_cannot_be_read_is_a_problem_and_no_failure(preview, content):
    answer = preview(content, name="upload")

    assert answer.status_code == 200
    assert answer.json()["problem"]
