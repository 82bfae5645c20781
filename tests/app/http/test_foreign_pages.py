"""Without keys no web page of another origin reaches the service; with keys its names are the operator's choice."""

import pytest

EVIL = "https://evil.example"


def statuses(client, headers):
    version = client.get("/models").json()["active"]
    files = {"file": ("a.ndjson", b"{}\n")}
    return [
        client.post("/jobs", data={"target_domain": "kitchen"}, files=files, headers=headers).status_code,
        client.post(f"/models/{version}/activate", headers=headers).status_code,
        client.get("/jobs", headers=headers).status_code,
    ]


@pytest.mark.parametrize(
    "host", ["rebound.evil.example", "localhost.evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "a b"]
)
def test_a_name_that_is_not_the_services_is_403(client, host):
    assert statuses(client, {"Host": host}) == [403, 403, 403]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.5"])
def test_localhost_and_addresses_are_the_services(client, host):
    assert statuses(client, {"Host": host}) == [202, 200, 200]


def test_names_may_be_added(serving):
    client = serving(allowed_hosts="taesar.example, *.cluster.local")

    assert [
        client.get("/jobs", headers={"Host": host}).status_code
        for host in ("taesar.example:80", "api.cluster.local", "cluster.local", "evil.example")
    ] == [200, 200, 403, 403]


@pytest.mark.parametrize("origin", [EVIL, "null", "http://localhost:3000", "http://localhost.evil.example"])
def test_a_page_of_another_origin_is_403(client, origin):
    assert statuses(client, {"Origin": origin, "Host": "localhost"}) == [403, 403, 403]


def test_a_page_of_another_site_that_sends_no_origin_may_only_link(client):
    assert statuses(client, {"Sec-Fetch-Site": "cross-site"}) == [403, 403, 200]


def test_the_services_own_page_may_send(client):
    headers = {"Origin": "http://localhost:8000", "Host": "localhost:8000", "Sec-Fetch-Site": "same-origin"}

    assert statuses(client, headers) == [202, 200, 200]


def test_with_keys_any_name_will_do_unless_some_are_listed(serving):
    key = {"Authorization": "Bearer secret"}
    headers = {**key, "Host": "anything.example", "Origin": EVIL}

    assert serving(api_keys="secret").get("/jobs", headers=headers).status_code == 200
    assert serving(api_keys="secret", allowed_hosts="a.example").get("/jobs", headers=headers).status_code == 403
