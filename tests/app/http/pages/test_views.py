"""Every view in a real browser: what it shows, that nothing is said on the console, and no other host is asked."""

import csv
import io
import re

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from .conftest import DOMAINS, HOSTILE, KEY, QUOTES, SCRIPT, served

VIEWS = ("try", "mappings?target=food", "data", "jobs", "models", "results")
HOSTILE_DOMAIN = DOMAINS[2]


def csv_file(rows):
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return {"name": "log.csv", "mimeType": "text/csv", "buffer": text.getvalue().encode()}


def interactions(num_users=40):
    """Rows of every domain, hostile ids and users among them."""
    rows = [("who", "what", "domain", "when")]
    for user in range(num_users):
        name = HOSTILE[user % 4] if user < 8 else f"u{user}"
        for at in range(9):
            domain = DOMAINS[at % 3]
            first = ("b", "f", "s")[at % 3]
            item = HOSTILE[(user + at) % 4] if at < 6 else f"{first}{(user + at) % 16:02d}"
            rows.append((name, item, domain, 1_000_000_000 + 100 * user + at))
    return rows


@pytest.fixture(scope="module")
def finished_job(address, browser):
    """A job that was submitted by the page, watched to its end, and whose result was downloaded there."""
    context = browser.new_context(base_url=address, accept_downloads=True)
    page = context.new_page()
    page.goto("/ui/jobs")
    page.locator("#target_domain").select_option("food")
    page.locator("#file").set_input_files(csv_file([*interactions(), ("only", "two")]))
    page.get_by_label("What column who is").select_option("user")
    page.get_by_label("What column what is").select_option("item")
    page.get_by_label("What column when is").select_option("timestamp")
    expect(page.get_by_text("Read as csv, one interaction a row.")).to_be_visible()
    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url(re.compile(r"/ui/jobs/[0-9a-f]{32}$"))
    expect(page.locator("#job .tag").first).to_have_text("succeeded", timeout=60_000)
    shown = page.locator("#job").inner_text()
    with page.expect_download() as download:
        page.get_by_role("link", name="ndjson").click()
    content = download.value.path().read_text()
    url = page.url
    context.close()
    return url, shown, content


def test_a_job_is_watched_from_upload_to_download(finished_job):
    _, shown, content = finished_job

    assert "Sequences\n36" in shown  # four hostile names, twice each among the forty users
    assert "Bad rows\n1" in shown
    assert "2 fields instead of 4" in shown
    assert len(content.splitlines()) == 36


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_no_serious_finding_of_axe(view, scheme, address, tab, axe, finished_job):
    page = tab(address, color_scheme=scheme)
    page.goto(f"/ui/{view}")
    if view == "try":
        page.get_by_role("button", name="Fill in an example").click()
        expect(page.locator("#sequence")).to_have_value(re.compile("food"))
        page.get_by_role("button", name="Rewrite").click()
        page.locator(".timeline li").first.wait_for()
    if view.startswith("mappings"):
        expect(page.locator("#map")).to_have_attribute("data-frames", re.compile("."))
        page.locator("table.pairs button").first.click()
        page.locator("#item .card").wait_for()
    if view == "jobs":
        page.locator("#file").set_input_files(csv_file(interactions()))
        page.locator("table.preview").wait_for()

    assert serious_findings(page, axe) == []


def serious_findings(page, axe):
    page.evaluate(axe)
    found = page.evaluate("axe.run()")
    return [
        (finding["id"], [node["html"][:120] for node in finding["nodes"]])
        for finding in found["violations"]
        if finding["impact"] in ("serious", "critical")
    ]


def test_a_jobs_page_has_no_serious_finding_either(address, tab, axe, finished_job):
    page = tab(address)
    page.goto(finished_job[0])

    assert serious_findings(page, axe) == []


def test_try_it_tells_what_became_of_every_item(address, tab):
    page = tab(address)
    page.goto("/ui/try")
    page.locator("#target").select_option("food")
    page.locator("#sequence").fill(
        "books,b01\nfood,f02\nbooks,b03\nbooks,b04\nbooks,b05\nbooks,b06\nfood,new\nbooks,no"
    )
    page.get_by_role("button", name="Rewrite").click()
    moments = page.locator(".timeline li")
    expect(moments).to_have_count(8)
    fates = [moment.split()[0] for moment in moments.locator(".tag").all_inner_texts()]

    assert fates == ["replaced", "kept", "deleted", "replaced", "replaced", "replaced", "kept", "skipped"]
    # Of the run b03 .. b06 the last three leave something: what else was expected is told once, at its end
    assert moments.nth(5).locator(".runner").count() == 4
    assert moments.nth(4).locator(".runner").count() == 0
    assert "only the last 3" in moments.nth(2).inner_text()
    assert "does not know" in moments.nth(6).inner_text()


def test_try_it_takes_a_file_and_an_item_that_is_picked(address, tab):
    page = tab(address)
    page.goto("/ui/try")
    page.locator("#sequence-file").set_input_files(
        {"name": "one.csv", "mimeType": "text/csv", "buffer": b"domain,item\nbooks,b01"}
    )
    expect(page.locator("#sequence")).to_have_value("domain,item\nbooks,b01")
    page.locator("#pick-domain").select_option("food")
    page.locator("#pick-item").press_sequentially("f1")
    expect(page.locator("#pick-options option")).to_have_count(6)  # f10 to f15
    page.locator("#pick-item").fill("f11")
    page.get_by_role("button", name="Add", exact=True).click()

    expect(page.locator("#sequence")).to_have_value("domain,item\nbooks,b01\nfood\tf11")


def test_an_error_is_shown_where_it_was_made(address, tab):
    page = tab(address)
    page.goto("/ui/try")
    page.locator("#sequence").fill("no comma here")
    page.get_by_role("button", name="Rewrite").click()
    expect(page.get_by_role("alert")).to_contain_text("line 1: expected a domain, a comma and an item")
    page.complaints.clear()  # Chromium itself notes on the console that an answer was a 422
    page.goto("/ui/jobs")
    page.locator("#file").set_input_files({"name": "x.csv", "mimeType": "text/csv", "buffer": b"a,b\n1,2\n"})
    expect(page.get_by_role("alert")).to_contain_text("no column for the user")
    page.get_by_role("button", name="Submit the job").click()
    expect(page.locator("#job-problem")).to_contain_text("no column for the user")
    page.complaints.clear()
    page.goto("/ui/jobs/" + 32 * "0")
    expect(page.get_by_role("alert")).to_contain_text("Unknown job")
    page.complaints.clear()


def test_hostile_names_are_shown_as_texts_everywhere(address, tab, finished_job):
    page = tab(address)
    page.goto("/ui/try")
    page.locator("#target").select_option(HOSTILE_DOMAIN)
    lines = [[domain, item] for item in HOSTILE for domain in DOMAINS]
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    page.locator("#sequence").fill(text.getvalue())
    page.get_by_role("button", name="Rewrite").click()
    expect(page.locator(".timeline .was .id")).to_have_text([item for _, item in lines])
    for path in ("/ui/mappings?target=food", "/ui/models", "/ui/jobs", "/ui/data", "/ui/results", finished_job[0]):
        page.goto(path)
        assert_is_unharmed(page)
    page.goto("/ui/mappings?target=food")
    page.locator("#search").fill("it's")
    expect(page.locator(".matches .id").first).to_have_text(QUOTES)
    page.locator(".matches button").first.click()
    expect(page.locator("#item h2 .id")).to_have_text(QUOTES)
    page.locator("#item table button").first.wait_for()
    assert_is_unharmed(page)
    page.goto("/ui/models")
    expect(page.get_by_role("heading", name=SCRIPT)).to_be_visible()


def assert_is_unharmed(page):
    assert page.title().endswith("Taesar")
    assert page.locator("script:not([src])").count() == 0
    assert page.locator("img[onerror], main b, main i").count() == 0


def test_the_map_moves_by_keys_and_shows_the_item_that_is_clicked(address, tab, finished_job):
    page = tab(address)
    page.goto("/ui/mappings?target=food")
    expect(page.locator("#map")).to_have_attribute("data-frames", re.compile("."))
    assert page.locator("#map").get_attribute("data-shown") == "60"
    before = page.locator("#map").screenshot()
    drawn = page.locator("#map").get_attribute("data-frames")
    page.locator("#map").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("+")
    expect(page.locator("#map")).not_to_have_attribute("data-frames", drawn)
    assert page.locator("#map").screenshot() != before
    page.keyboard.press("0")
    box = page.locator("#map").bounding_box()
    (x, y), *_ = points_of(address)
    page.mouse.click(box["x"] + (1 + 0.94 * x) * box["width"] / 2, box["y"] + (1 + 0.92 * y) * box["height"] / 2)
    expect(page.locator("#item .card")).to_have_attribute("data-number", "0")
    expect(page.locator("#item h2 .id")).to_have_text(HOSTILE[0])


def points_of(address):
    """Where the items lie on the map, by the API."""
    version = httpx.get(f"{address}/models").json()["active"]
    return np.frombuffer(httpx.get(f"{address}/models/{version}/map").content, dtype="<f4").reshape(-1, 2).tolist()


def test_a_mapping_is_followed_there_and_back(address, tab, finished_job):
    page = tab(address)
    page.goto("/ui/mappings?target=food")
    became = page.locator("table.pairs tbody tr").first.locator(".id").all_inner_texts()
    page.locator("table.pairs tbody button").first.click()
    expect(page.locator("#item h2 .id")).to_have_text(became[0])
    page.locator("#item tbody button").filter(has_text=became[1]).first.click()
    expect(page.locator("#item h2 .id")).to_have_text(became[1])
    expect(page.locator("#item .note")).to_contain_text("Items that became it")


def test_data_and_results_show_the_report(address, tab):
    page = tab(address)
    page.goto("/ui/data")
    expect(page.locator("main svg.marks")).to_have_count(1)
    expect(page.get_by_role("heading", name="People in several domains")).to_be_visible()
    page.goto("/ui/results")
    expect(page.get_by_role("heading", name="Ranking of the test items")).to_be_visible()
    assert page.locator("main svg.marks").count() >= 2


def test_models_show_their_training_and_one_is_activated_and_taken_back(address, tab):
    page = tab(address)
    page.goto("/ui/models")
    active, other = page.locator("article.active"), page.locator("article:not(.active)")
    expect(active.locator("svg.marks")).to_be_visible()
    expect(active).to_contain_text("trained 2026-03-01 04:00 UTC")
    expect(other).to_contain_text("another")
    other.get_by_role("button", name="Activate").click()
    expect(active).to_contain_text("another")
    page.get_by_role("button", name="Roll back").click()
    expect(active).to_contain_text(SCRIPT)


def test_every_view_can_be_reached_and_left_by_the_keyboard(address, tab):
    page = tab(address)
    page.goto("/ui/try")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Mappings"
    page.keyboard.press("Enter")
    page.wait_for_url("**/ui/mappings")


def test_with_keys_a_browser_logs_in_once_and_out_again(bundles, tab, tmp_path, axe):
    with served(bundle=bundles / "first", data=tmp_path, api_keys=KEY) as where:
        page = tab(where)
        page.goto("/ui/models")
        assert page.url.startswith(f"{where}/ui/login?next=")
        assert serious_findings(page, axe) == []
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("not accepted")
        page.complaints.clear()
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url("**/ui/models")
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")
        assert KEY not in cookie["value"]
        page.goto("/ui/try")
        page.locator("#sequence").fill("books,b01")
        page.get_by_role("button", name="Rewrite").click()
        expect(page.locator(".timeline li")).to_have_count(1)
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/ui/login")
        assert page.context.cookies() == [] or page.context.cookies()[0]["name"] == "taesar-login"
