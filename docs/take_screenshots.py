"""
Take docs/screenshots: every view of a demo, light and dark, in Debian's Chromium.

    make screenshots

The demo's folder (``demo-run``) is what is shown; where it is not there yet, the demo is run first. An error in the
console, or a request to another host, ends the command.
"""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.chromium import open_browser  # noqa: E402
from tests.page_server import page_server  # noqa: E402

DEMO = ROOT / "demo-run"
OUT = ROOT / "docs" / "screenshots"
SIZE = {"width": 1280, "height": 860}
QUALITY = 78
PATIENCE_MILLISECONDS = 180_000


def main() -> None:
    """Show the demo and take the pictures."""
    if not (DEMO / "reports").is_dir():
        subprocess.run([sys.executable, str(ROOT / "examples" / "demo.py"), str(DEMO)], check=True)
    OUT.mkdir(exist_ok=True)
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    with (
        tempfile.TemporaryDirectory() as data,
        page_server(DEMO / "bundle", data=Path(data), reports=DEMO / "reports") as address,
        open_browser() as browser,
    ):
        job, complaints = None, []
        for scheme in ("light", "dark"):
            context = browser.new_context(base_url=address, viewport=SIZE, color_scheme=scheme)
            context.set_default_timeout(PATIENCE_MILLISECONDS)
            page = context.new_page()
            watch(page, address, complaints)
            job = job or finished_job(page)
            take_views(page, job, scheme)
            context.close()
    if complaints:
        raise SystemExit("\n".join(complaints))


def watch(page: Page, address: str, complaints: list[str]) -> None:
    """Note what a page should not do."""

    def note_request(url: str) -> None:
        if not url.startswith((f"{address}/", "data:")):
            complaints.append(f"request to another host: {url}")

    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: note_request(request.url))


def finished_job(page: Page) -> str:
    """The address of a job over the demo's interactions, submitted by the page."""
    page.goto("/ui/jobs")
    page.locator("#target_domain").select_option("kitchen")
    page.locator("#purpose").select_option("training")
    page.locator("#file").set_input_files(DEMO / "interactions.csv")
    page.get_by_role("button", name="Submit the job").click()
    page.wait_for_url(re.compile(r"/ui/jobs/[0-9a-f]{32}$"))
    expect(page.locator("#job .tag").first).to_have_text("succeeded")
    return page.url


def take_views(page: Page, job: str, scheme: str) -> None:
    """All pictures of one colour scheme."""
    page.goto("/ui/try")
    page.get_by_role("button", name="Fill in an example").click()
    expect(page.locator("#sequence")).to_have_value(re.compile("food"))
    page.get_by_role("button", name="Rewrite").click()
    page.locator(".timeline li").first.wait_for()
    take(page, f"try-{scheme}")
    page.goto("/ui/mappings")
    expect(page.locator("#map")).to_have_attribute("data-frames", re.compile("."))
    page.locator("table.pairs tbody button").nth(6).click()
    page.locator("#item .card").wait_for()
    take(page, f"mappings-{scheme}")
    page.goto("/ui/jobs")
    page.locator("#file").set_input_files(DEMO / "interactions.csv")
    page.locator("table.preview").wait_for()
    take(page, f"jobs-{scheme}")
    for name, path in (("job", job), ("data", "/ui/data"), ("models", "/ui/models"), ("results", "/ui/results")):
        page.goto(path)
        take(page, f"{name}-{scheme}")


def take(page: Page, name: str) -> None:
    """What the window shows, as WebP, which Chromium writes itself."""
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(500)
    session = page.context.new_cdp_session(page)
    picture = session.send("Page.captureScreenshot", {"format": "webp", "quality": QUALITY})
    session.detach()
    (OUT / f"{name}.webp").write_bytes(base64.b64decode(picture["data"]))


if __name__ == "__main__":
    main()
