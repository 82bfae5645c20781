"""What clients expect of any HTTP service: an index, slashes, unknown parameters, content types, OPTIONS and CORS."""

import pytest
from pydantic import ValidationError

from app.settings import Settings

PAGE = "https://app.example.org"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
OPERATION_IDS = {
    "GET /": "index",
    "GET /healthz": "healthz",
    "GET /readyz": "readyz",
    "GET /metrics": "metrics",
    "POST /regenerate": "regenerate",
    "GET /models": "list_models",
    "POST /models/{version}/activate": "activate_model",
    "POST /models/{version}/canary": "start_canary",
    "POST /models/roll-back": "roll_back",
    "GET /models/{version}": "read_model",
    "GET /models/{version}/items": "find_items",
    "GET /models/{version}/map": "read_map",
    "GET /reports": "list_reports",
    "GET /reports/{name}": "read_report",
    "POST /previews": "preview_upload",
    "POST /jobs": "submit_job",
    "GET /jobs": "list_jobs",
    "GET /jobs/{job_id}": "get_job",
    "DELETE /jobs/{job_id}": "delete_job",
    "GET /jobs/{job_id}/events": "follow_job",
    "GET /jobs/{job_id}/result": "download_result",
    "GET /jobs/{job_id}/errors": "download_errors",
    "GET /mappings/{domain}": "read_mappings",
}


def test_operation_ids_stay_as_generated_clients_know_them(client):
    paths = client.get("/openapi.json").json()["paths"]

    assert {f"{m.upper()} {path}": one["operationId"] for path, ms in paths.items() for m, one in ms.items()} == (
        OPERATION_IDS
    )


def test_an_upload_is_described_as_a_file(client):
    operation = client.get("/openapi.json").json()["paths"]["/jobs"]["post"]
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    described = client.get("/openapi.json").json()["components"]["schemas"][form["$ref"].rsplit("/", 1)[1]]

    assert described["properties"]["file"]["type"] == "string"
    assert described["properties"]["file"]["format"] == "binary"


def test_the_root_points_to_what_is_there(client):
    answer = client.get("/", headers={"Accept": "application/json"})
    links = answer.json()["links"]

    assert answer.status_code == 200
    for name, path in links.items():
        status = client.get(path.replace("{domain}", "kitchen")).status_code
        assert status == {"regenerate": 405, "pages": 303}.get(name, 200), (name, status)


@pytest.mark.parametrize("path", ["/jobs/", "/models/", "/healthz/", "/docs/", "/openapi.json/", "/metrics/"])
def test_a_slash_at_the_end_leads_to_the_path_without_it(client, path):
    answer = client.get(path)

    assert (answer.status_code, answer.headers["location"]) == (308, path[:-1])


@pytest.mark.parametrize("label", sorted(OPERATION_IDS))
def test_an_unknown_query_parameter_is_refused_by_name(client, label):
    method, path = label.split()
    concrete = path.format(version="x", job_id="0" * 32, domain="kitchen", name="x")
    answer = client.request(method, f"{concrete}?colour=red&Limit=3")

    assert answer.status_code == 422
    assert [part["location"] for part in answer.json()["errors"]] == [["query", "colour"], ["query", "Limit"]]
    assert "'colour' is no parameter of this path" in answer.json()["detail"]


def test_known_query_parameters_are_not_refused(client):
    assert client.get("/jobs?limit=3&state=queued").status_code == 200
    assert client.request("HEAD", "/jobs?limit=3").status_code == 200
    assert client.request("HEAD", "/jobs?limits=3").status_code == 422


@pytest.mark.parametrize("path", ["/regenerate", "/jobs", "/models/x/canary"])
@pytest.mark.parametrize("kind", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_a_body_of_another_kind_or_none_is_415(client, path, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.post(path, content=b"{}", headers=headers)

    assert answer.status_code == 415
    assert "application/json" in answer.json()["detail"]


def test_without_the_setting_no_page_may_call_and_options_is_no_method(client):
    answer = client.request("OPTIONS", "/jobs")
    preflight = client.request("OPTIONS", "/jobs", headers=PREFLIGHT)

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert preflight.status_code == 403
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_a_page_that_may_call_is_answered_before_a_key_is_asked_for_and_may_read_the_answers(serving):
    client = serving(cors_origins=PAGE, api_keys="secret")
    preflight = client.request("OPTIONS", "/jobs", headers=PREFLIGHT)
    refused = client.get("/models", headers={"Origin": PAGE})
    answer = client.get("/models", headers={"Origin": PAGE, "Authorization": "Bearer secret"})

    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    assert answer.headers.get("access-control-allow-credentials") is None


def test_other_pages_may_not(serving):
    with_keys = serving(cors_origins=PAGE, api_keys="secret")
    other = {**PREFLIGHT, "Origin": "https://other.example.org"}

    assert with_keys.request("OPTIONS", "/jobs", headers=other).status_code == 400
    answer = with_keys.get("/models", headers={"Origin": other["Origin"], "Authorization": "Bearer secret"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_that_may_call_needs_no_key_where_none_is_asked_for_and_others_are_refused(serving, payload):
    client = serving(cors_origins=PAGE)
    asked = {"json": payload("k01"), "headers": {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"}}
    other = {"json": payload("k01"), "headers": {"Origin": "https://other.example.org"}}

    assert client.post("/regenerate", **asked).status_code == 200
    assert client.post("/regenerate", **other).status_code == 403


def test_with_the_setting_options_says_what_a_path_has(serving):
    client = serving(cors_origins=PAGE)
    found = {path: client.request("OPTIONS", path) for path in ("/jobs", "/regenerate", "/", "/no")}

    assert {path: (answer.status_code, answer.headers.get("allow")) for path, answer in found.items()} == {
        "/jobs": (204, "GET, HEAD, POST, OPTIONS"),
        "/regenerate": (204, "POST, OPTIONS"),
        "/": (204, "GET, HEAD, OPTIONS"),
        "/no": (404, None),
    }
    assert client.request("PATCH", "/jobs").headers["allow"] == "GET, HEAD, POST, OPTIONS"


@pytest.mark.parametrize(
    "origin", ["*", "app.example.org", f"{PAGE}/", f"{PAGE}/path", "null", "https://A.example.org"]
)
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(ValidationError, match="is no origin"):
        Settings(cors_origins=origin)
