"""Output files and folders: whole or not at all, and a former one is never lost."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from models.errors import OutputExistsError
from models.files import check_replaceable, replace_file, replace_folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_appears_at_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with replace_folder(out) as folder:
        (folder / "a").write_text("new")
        assert not out.exists()
    assert contents(tmp_path) == {"deep/out/a": "new"}


def test_a_former_folder_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with replace_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("new")
        assert contents(tmp_path / "out") == {"old": "old"}
    assert contents(tmp_path) == {"out/a": "new"}


def test_a_failure_leaves_the_former_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")

    def write() -> None:
        with replace_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("new")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write()
    assert contents(tmp_path) == {"out/old": "old"}


def test_a_failure_to_move_in_puts_the_former_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="disk gone"), replace_folder(tmp_path / "out"):
        pass
    assert contents(tmp_path) == {"out/old": "old"}


def test_what_a_killed_process_left_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f".out.{os.getpid()}.partial").mkdir()
    for _ in range(2):
        with replace_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("new")
    assert contents(tmp_path / "out") == {"a": "new"}


def test_the_folder_has_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with replace_folder(tmp_path / "out"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_a_file_appears_at_the_end_and_replaces_the_former_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for text in ("former", "new"):
        before = contents(tmp_path)
        with replace_file(path) as partial:
            partial.write_text(text)
            assert {name: found for name, found in contents(tmp_path).items() if name == "deep/file"} == before
        assert contents(tmp_path) == {"deep/file": text}


def test_a_failure_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("former")

    def write() -> None:
        with replace_file(tmp_path / "file") as partial:
            partial.write_text("half")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        write()
    assert contents(tmp_path) == {"file": "former"}


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Each writes to a name of its own; the one that ends last stays."""
    with replace_file(tmp_path / "file") as first:
        first.write_text("first")
        with replace_file(tmp_path / "file") as second:
            second.write_text("second")
        assert contents(tmp_path)["file"] == "second"
    assert contents(tmp_path) == {"file": "first"}


def check(out: Path) -> None:
    check_replaceable(out, what="a pair", required=frozenset({"a", "b"}), ours=lambda name: name in {"a", "b", "c"})


@pytest.mark.parametrize("names", [[], ["a", "b"], ["a", "b", "c"]])
def test_nothing_and_an_earlier_output_may_be_replaced(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    check(tmp_path)
    check(tmp_path / "absent")


@pytest.mark.parametrize("names", [["a"], ["a", "b", "thesis.tex"], ["thesis.tex"]])
def test_other_files_are_never_replaced(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(OutputExistsError, match="is not a pair"):
        check(tmp_path)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(OutputExistsError, match="is a file"):
        check(tmp_path / "out")
