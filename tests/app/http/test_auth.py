"""Keys: every route but the open ones asks for one with its scope, unless none is set; none fills the queue for all."""

import asyncio
import time

import pytest
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import ValidationError
from structlog.testing import capture_logs

from app.access.key_file import ALL_SCOPES, AccessKey, KeyScope, add_key, hash_of, remove_key
from app.errors import KeyFileError
from app.http.middleware import OPEN_PATHS
from app.http.sessions import is_page
from app.settings import ExposedError, Settings, unknown_settings

ASKING = [("GET", "/models"), ("POST", "/models/x/activate"), ("POST", "/regenerate"), ("GET", "/no/such/path")]


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize(("method", "path"), ASKING)
@pytest.mark.parametrize(
    "headers",
    [{}, bearer("other"), bearer(""), {"Authorization": "Basic first"}, bearer("firs"), {"Authorization": "first"}],
)
def test_without_an_accepted_key_nothing_is_answered(serving, method, path, headers):
    client = serving(api_keys="first, second")

    assert client.request(method, path, headers=headers).status_code == 401


@pytest.mark.parametrize("key", ["first", "second"])
def test_every_accepted_key_opens(serving, payload, key):
    client = serving(api_keys="first, second")

    assert client.get("/models", headers=bearer(key)).status_code == 200
    assert client.post("/regenerate", json=payload("k01"), headers=bearer(key)).status_code == 200


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_open_paths_need_no_key(serving, path):
    assert serving(api_keys="first").get(path).status_code == 200


def test_the_open_paths_are_health_metrics_and_what_says_what_is_there():
    assert set(OPEN_PATHS) == {"/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"}


def test_a_key_is_asked_for_before_the_body_is_read(serving):
    answer = serving(api_keys="first", max_body_bytes=1024).post("/regenerate", content=b"x" * 5000)

    assert answer.status_code == 401


def test_without_any_key_everything_is_open(client):
    assert client.get("/models").status_code == 200


def test_keys_of_the_file_are_accepted_beside_those_of_the_environment(serving, tmp_path):
    file = key_file(tmp_path, shop=ALL_SCOPES)
    client = serving(api_keys="from-environment", api_keys_file=file)

    for key in ("shop-secret", "from-environment"):
        assert client.get("/models", headers=bearer(key)).status_code == 200
    for key in ("", "# comment", "shop", hash_of(b"shop-secret"), file.read_text().split()[2]):
        assert client.get("/models", headers=bearer(key)).status_code == 401


@pytest.mark.parametrize("content", ["", "\n \n", "# none yet\n", "\ufeff", "a-plain-key\n", None])
def test_a_key_file_that_holds_no_key_stops_the_start_instead_of_opening_the_service(serving, tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)

    with pytest.raises(KeyFileError, match="keys"):
        serving(api_keys_file=file)


@pytest.mark.parametrize("keys", ["", " , ,"])
def test_keys_that_are_set_but_hold_none_stop_the_start(monkeypatch, keys):
    monkeypatch.setenv("TAESAR_API_KEYS", keys)

    with pytest.raises(ValidationError, match="TAESAR_API_KEYS is set but holds no key"):
        Settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "taesar.example"])
def test_without_keys_others_than_this_machine_are_let_in_by_choice_only(host):
    with pytest.raises(ExposedError, match="no API key is set"):
        Settings(host=host).refuse_exposure()
    Settings(host=host, without_keys="anywhere").refuse_exposure()
    Settings(host=host, api_keys="secret").refuse_exposure()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_without_keys_this_machine_is_let_in(host):
    Settings(host=host).refuse_exposure()


def test_a_misspelt_setting_is_named_with_the_one_that_is_meant():
    assert unknown_settings(["TAESAR_API_KEY", "TAESAR_PORT", "taesar_host", "HOME", "TAESAR_TEST_IMAGE"]) == [
        "TAESAR_API_KEY is no setting; is TAESAR_API_KEYS meant?"
    ]


def test_keys_come_from_the_environment_and_never_show(monkeypatch):
    monkeypatch.setenv("TAESAR_API_KEYS", "one,two,,")
    settings = Settings()

    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert "two" not in repr(settings)


SCOPES = {
    "regenerate": "regenerate",
    "list_models": None,
    "activate_model": "admin",
    "start_canary": "admin",
    "roll_back": "admin",
    "read_model": None,
    "find_items": None,
    "read_map": None,
    "list_reports": None,
    "read_report": None,
    "preview_upload": "jobs",
    "submit_job": "jobs",
    "list_jobs": "jobs",
    "get_job": "jobs",
    "delete_job": "jobs",
    "follow_job": "jobs",
    "download_result": "jobs",
    "download_errors": "jobs",
    "read_mappings": "mappings:read",
}
"""Each route that asks for a key -> the scope that it asks for; None: any."""
OPEN = {"index", "healthz", "readyz", "metrics", "read_docs"}


def key_file(folder, **scopes):
    """A file of keys: name -> scopes; the value of each is NAME-secret."""
    for name, of_it in scopes.items():
        add_key(folder / "keys", AccessKey(name, frozenset(of_it), hash_of(f"{name}-secret".encode())))
    return folder / "keys"


@pytest.fixture
def scoped(serving, tmp_path):
    """A service with a key for every scope, named for it, one for all of them, and no pace."""
    names = {scope.replace(":", "-"): [scope] for scope in KeyScope}
    file = key_file(tmp_path, **names, everything=ALL_SCOPES)
    return serving(api_keys_file=file, key_requests_per_second=0)


def test_each_route_with_each_scope(scoped):
    """All routes that the application has, not those of a list: a new one without a scope fails here."""
    routes = [context.original_route for context in iter_route_contexts(scoped.app.routes)]
    routes = [route for route in routes if isinstance(route, APIRoute) and not is_page(route.path)]
    found = {
        (route.name, scope): scoped.request(
            method,
            route.path_format.format(version="none", job_id="0" * 32, domain="kitchen", name="none"),
            headers=bearer(f"{scope.replace(':', '-')}-secret"),
        ).status_code
        for route in routes
        for method in route.methods
        for scope in (*KeyScope, "everything")
    }

    assert {name for name, _ in found} == SCOPES.keys() | OPEN
    for (name, scope), status in found.items():
        allowed = name in OPEN or SCOPES[name] in (None, scope) or scope == "everything"
        assert status != 401
        assert (status == 403) is not allowed, (name, scope, status)


def test_what_a_key_may_not_do_is_403_names_the_scope_and_does_nothing(scoped, payload):
    answer = scoped.post("/regenerate", json=payload("k01"), headers=bearer("jobs-secret"))

    assert answer.status_code == 403
    assert answer.json()["type"] == "urn:taesar:problem:missing-scope"
    assert answer.json()["detail"] == "the key jobs lacks the scope regenerate"


def test_a_job_is_cancelled_by_jobs_and_removed_by_admin_too(scoped, tmp_path):
    removing = f"/jobs/{'0' * 32}?remove=true"

    assert scoped.request("DELETE", f"/jobs/{'0' * 32}", headers=bearer("jobs-secret")).status_code == 404
    assert scoped.request("DELETE", removing, headers=bearer("jobs-secret")).status_code == 403
    assert scoped.request("DELETE", removing, headers=bearer("everything-secret")).status_code == 404


def test_keys_come_and_go_without_a_restart(serving, tmp_path):
    file = key_file(tmp_path, shop=ALL_SCOPES)
    client = serving(api_keys_file=file)
    statuses = lambda: [client.get("/models", headers=bearer(f"{n}-secret")).status_code for n in ("shop", "next")]  # noqa: E731
    before = statuses()
    key_file(tmp_path, next=ALL_SCOPES)
    wait_until(lambda: statuses() == [200, 200])
    remove_key(file, "shop")
    wait_until(lambda: statuses() == [401, 200])
    file.write_text("half a li")
    time.sleep(1.5)

    assert before == [200, 401]
    assert statuses() == [401, 200]


def wait_until(condition):
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_log_names_the_key_of_a_request_and_never_its_value(scoped):
    with capture_logs() as logs:
        scoped.get("/models", headers=bearer("jobs-secret"))
        scoped.get("/models", headers=bearer("unknown-secret"))

    told = [(line["key"], line["status"]) for line in logs if line["event"] == "request"]
    assert told == [("jobs", 200), (None, 401)]
    assert "secret" not in str(logs)


def test_a_key_that_asks_too_often_waits_and_the_others_do_not(serving, tmp_path):
    file = key_file(tmp_path, shop=ALL_SCOPES, other=ALL_SCOPES)
    client = serving(api_keys_file=file, key_requests_per_second=0.01)
    answers = [client.get("/models", headers=bearer("shop-secret")) for _ in range(3)]

    assert [answer.status_code for answer in answers] == [200, 429, 429]
    assert answers[1].json()["type"] == "urn:taesar:problem:key-limit"
    assert 90 <= int(answers[1].headers["retry-after"]) <= 100
    assert client.get("/models", headers=bearer("other-secret")).status_code == 200
    assert client.get("/healthz", headers=bearer("shop-secret")).status_code == 200


def test_one_key_cannot_fill_the_queue_for_the_others(serving, payload, tmp_path):
    """Thirty requests of one key at once, of which three may wait; another key's beside them is answered."""
    file = key_file(tmp_path, shop=ALL_SCOPES, other=ALL_SCOPES)
    client = serving(
        api_keys_file=file,
        max_queued_sequences=4,
        max_sequences_per_request=1,
        key_queued_sequences=3,
        key_requests_per_second=0,
    )

    async def together():
        names = ["shop"] * 30 + ["other"]
        asked = [
            client.request_here("POST", "/regenerate", json=payload("b01 k02"), headers=bearer(f"{name}-secret"))
            for name in names
        ]
        return await asyncio.gather(*asked)

    *of_shop, of_other = client.portal.call(together)
    refused = [answer for answer in of_shop if answer.status_code != 200]

    assert of_other.status_code == 200
    assert len(refused) > 0
    assert {answer.json()["type"] for answer in refused} == {"urn:taesar:problem:key-limit"}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}


def test_the_description_of_the_api_says_which_routes_ask_and_for_what(serving, client):
    paths = serving(api_keys="first").get("/openapi.json").json()["paths"]
    operations = [operation for methods in paths.values() for operation in methods.values()]
    asked = {one["operationId"]: one["security"][0]["key"] for one in operations if "security" in one}
    without_keys = client.get("/openapi.json").json()

    assert asked == {name: [scope] if scope else [] for name, scope in SCOPES.items()}
    assert "security" not in str(without_keys).lower().replace("securityscheme", "security")
