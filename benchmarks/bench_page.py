"""
The pages at size, in Chromium without a graphics card: how soon the first view and the map can be used, and how many
frames a second the map draws while it is moved.

Answers are checked before they are timed. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import Browser, Page

from benchmarks.measure import machine, random_bundle, rounded
from models.bundle import save_bundle
from tests.chromium import open_browser
from tests.page_server import page_server

NUM_DOMAINS = 2
PAN_SECONDS = 3
# Moves the map by its pointer events once a frame, as a hand does, and counts the frames in which it was drawn anew
PAN = """
(seconds) => new Promise((done) => {
  const map = document.getElementById("map");
  const send = (type, x, y) => map.dispatchEvent(
    new PointerEvent(type, { bubbles: true, pointerId: 1, clientX: x, clientY: y, buttons: 1 }));
  map.setPointerCapture = () => {};
  const box = map.getBoundingClientRect();
  const [middleX, middleY] = [box.left + box.width / 2, box.top + box.height / 2];
  send("pointerdown", middleX, middleY);
  const before = Number(map.dataset.frames);
  const started = performance.now();
  const step = (now) => {
    const passed = (now - started) / 1000;
    if (passed >= seconds) {
      send("pointerup", middleX, middleY + 50);
      return done((Number(map.dataset.frames) - before) / passed);
    }
    send("pointermove", middleX + 120 * Math.sin(3 * passed), middleY + 80 * Math.sin(2 * passed));
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200_000, help="of the bundle that is opened")
    parser.add_argument("--points", type=int, default=50_000, help="of the map that is moved")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with open_browser() as browser:
        found = {
            "benchmark": "page",
            "large": measured(browser, arguments.items, arguments.rounds),
            "panned": measured(browser, arguments.points, arguments.rounds),
            "machine": machine(),
        }
    print(json.dumps(rounded(found)))


def measured(browser: Browser, num_items: int, rounds: int) -> dict[str, Any]:
    """Seconds and frames with a random bundle of *num_items*."""
    with tempfile.TemporaryDirectory() as folder:
        made = random_bundle(num_items, NUM_DOMAINS)
        bundle = Path(folder) / "bundle"
        save_bundle(
            bundle, vocabulary=made.vocabulary, base=made.base, experts=made.experts, provenance={"dataset": "random"}
        )
        del made
        with page_server(bundle, data=Path(folder) / "data") as address:
            first = [first_view_seconds(browser, address) for _ in range(rounds)]
            making = map_seconds(browser, address, num_items)[0]
            maps = [map_seconds(browser, address, num_items) for _ in range(rounds)]
    return {
        "items": num_items,
        "first_view_seconds": statistics.median(first),
        "making_the_map_seconds": making,
        "map_seconds": statistics.median(seconds for seconds, _ in maps),
        "pan_frames_per_second": statistics.median(frames for _, frames in maps),
    }


def first_view_seconds(browser: Browser, address: str) -> float:
    """From an empty browser to a first view that answers what is typed."""
    page = fresh_page(browser)
    started = time.perf_counter()
    page.goto(f"{address}/ui")
    page.locator("#sequence").fill("x,y")
    seconds = time.perf_counter() - started
    assert page.locator("#target option").count() == NUM_DOMAINS
    page.context.close()
    return seconds


def map_seconds(browser: Browser, address: str, num_items: int) -> tuple[float, float]:
    """From an empty browser to a map that is drawn, and the frames a second of moving it."""
    page = fresh_page(browser)
    started = time.perf_counter()
    page.goto(f"{address}/ui/mappings")
    page.locator("#map[data-frames]").wait_for()
    seconds = time.perf_counter() - started
    assert page.locator("#map").get_attribute("data-shown") == str(num_items)
    frames = float(page.evaluate(PAN, PAN_SECONDS))
    page.context.close()
    return seconds, frames


def fresh_page(browser: Browser) -> Page:
    """A page of a browser that has kept nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    context.set_default_timeout(120_000)
    return context.new_page()


if __name__ == "__main__":
    main()
