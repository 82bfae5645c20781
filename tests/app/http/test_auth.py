"""API keys: every route but the open ones asks for one, unless none is set."""

import pytest
from pydantic import ValidationError

from app.http.middleware import OPEN_PATHS
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


def test_the_open_paths_are_health_metrics_and_the_description_of_the_api():
    assert set(OPEN_PATHS) == {"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"}


def test_a_key_is_asked_for_before_the_body_is_read(serving):
    answer = serving(api_keys="first", max_body_bytes=1024).post("/regenerate", content=b"x" * 5000)

    assert answer.status_code == 401


def test_without_any_key_everything_is_open(client):
    assert client.get("/models").status_code == 200


def test_keys_of_the_file_are_accepted_beside_those_of_the_environment(serving, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# those of the shop\nfrom-file\n\n  rotated \n")
    client = serving(api_keys="from-environment", api_keys_file=file)

    for key in ("from-file", "rotated", "from-environment"):
        assert client.get("/models", headers=bearer(key)).status_code == 200
    for key in ("", "# those of the shop"):
        assert client.get("/models", headers=bearer(key)).status_code == 401


@pytest.mark.parametrize("content", ["", "\n \n", "# none yet\n", None])
def test_a_key_file_that_holds_no_key_stops_the_start_instead_of_opening_the_service(tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)

    with pytest.raises(ValidationError, match="TAESAR_API_KEYS_FILE"):
        Settings(api_keys_file=file)


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

    assert settings.accepted_keys() == ("one", "two")
    assert "two" not in repr(settings)


def test_the_description_of_the_api_says_which_routes_ask(serving):
    paths = serving(api_keys="first").get("/openapi.json").json()["paths"]

    assert [path for path, methods in paths.items() if not all("security" in op for op in methods.values())] == [
        "/healthz",
        "/readyz",
        "/metrics",
    ]
