"""Sessions of browsers: what a cookie opens, and what it does not."""

import itsdangerous
import pytest

from app.access.key_file import hash_of
from app.access.key_ring import KeyRing
from app.http.sessions import CSRF_HEADER, LOGIN_COOKIE, SESSION_COOKIE, Sessions
from app.settings import Settings

KEY = "first-key"


def ring(*keys):
    return KeyRing.of(Settings(api_keys=",".join(keys)))


def cookie_header(**cookies):
    return {"Cookie": "; ".join(f"{name.replace('_', '-')}={value}" for name, value in cookies.items())}


@pytest.fixture
def guarded(serving):
    return serving(api_keys=f"{KEY}, second")


def logged_in(client, key=KEY):
    """The headers of a browser that has logged in; with its page's token."""
    form = client.get("/ui/login")
    nonce = form.cookies[LOGIN_COOKIE]
    token = form.text.split('name="token" value="')[1].split('"')[0]
    answer = client.post(
        "/ui/login", data={"key": key, "token": token, "next": "/ui/jobs"}, headers=cookie_header(taesar_login=nonce)
    )
    assert answer.status_code == 303
    assert answer.headers["location"] == "/ui/jobs"
    cookie = answer.cookies[SESSION_COOKIE]
    page = client.get("/ui/models", headers=cookie_header(taesar_session=cookie))
    csrf = page.text.split('"X-CSRF-Token": "')[1].split('"')[0]
    return cookie_header(taesar_session=cookie) | {CSRF_HEADER: csrf}


def test_a_session_opens_what_its_key_opens(guarded, payload):
    headers = logged_in(guarded)

    assert guarded.get("/models", headers=headers).status_code == 200
    assert guarded.post("/regenerate", json=payload("k01"), headers=headers).status_code == 200


def test_a_cookie_alone_changes_nothing(guarded, payload):
    headers = logged_in(guarded)
    del headers[CSRF_HEADER]
    answer = guarded.post("/regenerate", json=payload("k01"), headers=headers)

    assert (answer.status_code, answer.json()["type"]) == (403, "urn:taesar:problem:missing-csrf-token")


def test_the_token_of_another_session_is_none_of_this_one(guarded, payload):
    mine, other = logged_in(guarded), logged_in(guarded)
    answer = guarded.post("/regenerate", json=payload("k01"), headers=mine | {CSRF_HEADER: other[CSRF_HEADER]})

    assert answer.status_code == 403


def test_a_forged_or_foreign_cookie_is_no_session(guarded):
    forged = itsdangerous.URLSafeTimedSerializer("guess", salt="taesar session").dumps(["0" * 64, "nonce"])

    for cookie in (forged, "", "x", f"{logged_in(guarded)['Cookie'].split('=', 1)[1]}x"):
        assert guarded.get("/models", headers=cookie_header(taesar_session=cookie)).status_code == 401


def test_a_page_without_a_session_leads_to_the_login_and_back(guarded):
    whole = guarded.get("/ui/jobs")
    part = guarded.get("/ui/jobs", headers={"HX-Request": "true"})

    assert (whole.status_code, whole.headers["location"]) == (303, "/ui/login?next=/ui/jobs")
    assert (part.status_code, part.headers["hx-redirect"]) == (401, "/ui/login")


def test_the_login_form_of_another_site_logs_nobody_in(guarded):
    answer = guarded.post("/ui/login", data={"key": KEY, "token": "x"})

    assert answer.status_code == 401
    assert SESSION_COOKIE not in answer.cookies


@pytest.mark.parametrize("elsewhere", ["https://evil.example/ui/", "//evil.example", "/ui\\..", "/jobs", "/ui/\n"])
def test_a_login_leads_to_no_other_place(guarded, elsewhere):
    form = guarded.get("/ui/login", params={"next": elsewhere})

    assert 'name="next" value="/ui"' in form.text


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(guarded):
    form = guarded.get("/ui/login")
    said = form.headers["set-cookie"].lower()

    assert all(word in said for word in ("httponly", "secure", "samesite=strict"))


def test_a_key_that_is_not_accepted_any_more_ends_its_sessions():
    before, after = Sessions(ring(KEY, "second"), "s" * 32), Sessions(ring("second"), "s" * 32)
    cookie = before.begin(KEY)

    assert before.key_of(cookie).hash == hash_of(KEY.encode())
    assert after.key_of(cookie) is None
    assert after.key_of(before.begin("second")).hash == hash_of(b"second")


def test_without_a_secret_every_start_has_its_own():
    cookie = Sessions(ring(KEY), None).begin(KEY)

    assert Sessions(ring(KEY), None).key_of(cookie) is None


def test_pages_need_no_login_where_no_key_is_set(client):
    assert client.get("/ui/models").status_code == 200


def test_a_browser_at_the_root_is_led_to_the_pages_and_a_program_is_not(guarded):
    browser = guarded.get("/", headers={"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"})

    assert (browser.status_code, browser.headers["location"]) == (303, "/ui/try")
    assert guarded.get("/", headers={"Accept": "application/json"}).status_code != 303


def test_what_a_page_may_load_is_ours(client):
    policy = client.get("/ui/models").headers["content-security-policy"]

    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert "http" not in policy
