"""Debian's Chromium without a head, for tests, screenshots and measurements."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, sync_playwright

# Nothing of its own that asks another host, and software rendering, as where there is no display
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class BrowserMissingError(Exception):
    """Chromium is not installed."""


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser, closed in the end. Raises BrowserMissingError."""
    program = shutil.which("chromium")
    if program is None:
        raise BrowserMissingError("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(OPTIONS))
        try:
            yield browser
        finally:
            browser.close()
