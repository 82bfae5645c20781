"""What the demo promises besides running: held-back users are unseen, and no foreign folder is emptied."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_held_back_users_are_in_no_row_that_is_prepared(demo, tmp_path) -> None:
    held_back = demo.hold_back_users(tmp_path / "rest.csv")
    rest, whole = pl.read_csv(tmp_path / "rest.csv"), pl.read_csv(demo.SAMPLE)
    users = {sequence["user_id"] for sequence in held_back}

    assert len(users) == demo.NUM_HELD_BACK
    assert users.isdisjoint(rest["user"])
    assert rest.height + sum(len(sequence["items"]) for sequence in held_back) == whole.height


def test_a_folder_that_is_not_a_demos_is_left_alone(demo, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")

    with pytest.raises(SystemExit):
        demo.empty(tmp_path / "mine")

    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_earlier_demos_folder_is_emptied(demo, tmp_path) -> None:
    demo.empty(tmp_path / "demo")
    (tmp_path / "demo" / "old.csv").touch()
    demo.empty(tmp_path / "demo")

    assert not (tmp_path / "demo" / "old.csv").exists()
