"""Reports of evaluations, as GET /reports lists them."""

import json

import pytest


def write(folder, content):
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(content)


@pytest.fixture
def reporting(serving, tmp_path):
    root = tmp_path / "reports"
    provenance = {"target": "kitchen", "dataset": "spring", "composite": {"bundle_version": "abc"}}
    write(root / "first", json.dumps({"provenance": provenance, "results": {}}))
    write(root / "none", "[1]")
    write(root / "torn", '{"provenance": ')
    write(root / "half", json.dumps({"provenance": {"target": "kitchen"}}))
    write(tmp_path / "secret", json.dumps({"provenance": provenance}))
    return serving(reports=root)


def test_what_is_no_report_is_passed_over(reporting):
    (found,) = reporting.get("/reports").json()["reports"]

    assert (found["name"], found["target"], found["dataset"], found["bundle"]) == ("first", "kitchen", "spring", "abc")


def test_a_report_is_given_as_it_was_written(reporting):
    assert reporting.get("/reports/first").json()["results"] == {}


@pytest.mark.parametrize("name", ["none", "torn", "other", "%2e%2e", "%2e%2e%2fsecret", "first%2f..%2f..%2fsecret"])
def test_no_other_file_is_ever_read(reporting, name):
    assert reporting.get(f"/reports/{name}").status_code == 404


def test_without_the_setting_there_are_none(client):
    assert client.get("/reports").json() == {"reports": []}
