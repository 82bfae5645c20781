"""What others wrote and we hand on is what they published: each file has its package, version, licence and hash."""

import hashlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
LISTED = json.loads((ROOT / "app" / "http" / "pages" / "vendored.json").read_text())
OURS = {"site.css", "site.js", "map.js", "icon.svg"}


@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry["package"])
def test_a_vendored_file_is_as_it_was_published(entry):
    assert hashlib.sha256((ROOT / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("entry", LISTED, ids=lambda entry: entry["package"])
def test_a_vendored_file_comes_with_its_licence(entry):
    first_words = {"0BSD": "Zero-Clause BSD", "MIT": "MIT License", "MPL-2.0": "Mozilla Public License"}

    assert first_words[entry["licence"]] in (ROOT / entry["licence_file"]).read_text()[:200]


def test_every_file_that_browsers_get_is_ours_or_listed():
    static = ROOT / "app" / "http" / "pages" / "static"
    found = {path.name for path in static.iterdir() if path.is_file()}

    assert found == OURS | {Path(entry["file"]).name for entry in LISTED if "static" in entry["file"]}


def test_none_of_our_own_files_names_a_foreign_address():
    static = ROOT / "app" / "http" / "pages"
    texts = [path for path in static.rglob("*") if path.name in OURS or path.suffix == ".html"]
    addressed = [path.name for path in texts if "//" in path.read_text().replace("http://www.w3.org/2000/svg", "")]

    assert len(texts) > 15
    assert [name for name in addressed if not name.endswith(".js")] == []  # in scripts, // begins a comment
    assert [path.name for path in texts if "https:" in path.read_text()] == []
