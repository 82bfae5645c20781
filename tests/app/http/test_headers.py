"""What answers say beside their content: to browsers, to caches, to HEAD and to a wrong method."""

import hashlib
import re
from base64 import b64encode

import pyarrow as pa
import pytest

from app.http.paging import is_unchanged
from app.jobs.results import ResultRow, encode_results, output_file, read_output_file, without_formulas
from models.item_counts import ITEM_COUNTS


@pytest.mark.parametrize("path", ["/healthz", "/jobs", "/no-such", "/docs", "/openapi.json", "/metrics"])
def test_every_answer_is_what_it_says_and_no_part_of_a_page(client, path):
    headers = client.get(path).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'none'; frame-ancestors 'none'")


def test_the_docs_load_nothing_and_run_nothing(client):
    answer = client.get("/docs")
    style = re.search("<style>(.*?)</style>", answer.text, re.DOTALL)[1]

    assert "<script" not in answer.text
    assert re.findall(r"(?:src|href)='([^']*)'", answer.text) == ["openapi.json"]
    assert b64encode(hashlib.sha256(style.encode()).digest()).decode() in answer.headers["content-security-policy"]
    for path in ("POST /regenerate", "GET /jobs/{job_id}/result", "GET /healthz"):
        assert f"<code>{path}</code>" in answer.text
    assert "<code>sequences</code>" in answer.text


@pytest.mark.parametrize(
    "path", ["/healthz", "/readyz", "/metrics", "/jobs", "/models", "/docs", "/mappings/kitchen", "/no"]
)
def test_head_is_answered_as_get_without_a_body(client, path):
    get, head = client.get(path), client.request("HEAD", path)
    changing = {"x-request-id", "content-length"} if path == "/metrics" else {"x-request-id"}

    assert head.status_code == get.status_code
    assert head.content == b""
    assert {**head.headers} | dict.fromkeys(changing) == {**get.headers} | dict.fromkeys(changing)


def test_head_of_a_stream_ends(client):
    headers = {"Accept": "application/x-ndjson"}
    answer = client.request("HEAD", "/mappings/kitchen", headers=headers)

    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-ndjson")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/jobs", "GET, HEAD, POST"),
        ("/jobs/1", "GET, HEAD, DELETE"),
        ("/regenerate", "POST"),
        ("/mappings/a/b", "GET, HEAD"),
        ("/docs", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_told_all_that_are_right(client, path, allowed):
    answer = client.request("PATCH", path)

    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed


def test_a_slash_too_many_leads_to_the_path_without_it_and_never_to_the_name_it_was_asked_by(client):
    answer = client.get("/jobs/?limit=2", headers={"Host": "rebound.evil.example"})

    assert (answer.status_code, answer.headers["location"]) == (308, "/jobs?limit=2")
    assert client.post("/jobs/").status_code == 404


@pytest.mark.parametrize(
    "path", ["//evil.example/", "//evil.example/jobs/", "/nothing/", "/", "/%0d%0aX:%20y/", "/jobs//"]
)
def test_no_path_leads_elsewhere(client, path):
    answer = client.get(f"http://localhost{path}")

    assert answer.headers.get("location", "/jobs") == "/jobs"


@pytest.mark.parametrize(
    ("header", "unchanged"),
    [
        (None, False),
        ("*", True),
        (' W/"a-1" ', True),
        ('"a-1"', True),
        ('"x,y", W/"a-1"', True),
        ('W/"a-2", "a"', False),
        ("a-1", False),
        ("", False),
    ],
)
def test_a_tag_is_compared_weakly(header, unchanged):
    assert is_unchanged(header, 'W/"a-1"') is unchanged


def test_what_any_tag_matches_is_304(client):
    answer = client.get("/mappings/kitchen", headers={"If-None-Match": "*"})

    assert (answer.status_code, answer.content) == (304, b"")


FORMULAS = ['=HYPERLINK("x")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"]
OTHERS = ["B000", "a=b", "", None]


def test_a_text_that_is_a_formula_to_a_spreadsheet_is_quoted_and_nothing_else_changes():
    texts = FORMULAS + OTHERS
    columns = {"text": texts, "number": [-5] * len(texts), "texts": [texts] * len(texts)}
    quoted = [f"'{text}" for text in FORMULAS] + OTHERS
    found = without_formulas(pa.table(columns))

    assert found.to_pydict() == {"text": quoted, "number": columns["number"], "texts": [quoted] * len(texts)}
    assert found.schema == pa.table(columns).schema


@pytest.mark.parametrize(("result_format", "name"), [("csv", "'=1+1"), ("inter", "=1+1"), ("ndjson", "=1+1")])
def test_a_csv_result_holds_no_formula_and_other_formats_hold_names_unchanged(result_format, name):
    row = ResultRow(**dict.fromkeys(ITEM_COUNTS, 0), user_id="=1+1", items=["=1+1"], interactions=[])
    content = b"".join(encode_results([read_output_file(output_file([row]))], result_format))

    assert content.decode().count("=1+1") == 2
    assert content.decode().count(name) == 2
    assert content.decode().count("'=1+1") == (2 if result_format == "csv" else 0)
