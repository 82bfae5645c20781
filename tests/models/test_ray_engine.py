"""Parts made by a Ray cluster are those that this process makes, also when one of its actors is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.composite.folder import write_composite
from models.composite.work_folder import work_folder_of
from models.errors import EngineError

ROOT = Path(__file__).resolve().parents[2]

DRIVER = """
import sys
from pathlib import Path

from models.bundle import describe_bundle
from models.composite.folder import PartSize, write_composite
from models.composite.ray_engine import RayEngine
from models.data.dataset import describe_dataset

summary = write_composite(
    describe_dataset(Path(sys.argv[1])), describe_bundle(Path(sys.argv[2])), target="food", rule="anticipate",
    out=Path(sys.argv[3]), part_size=PartSize(users=1), engine=RayEngine(actors=2, device="cpu"),
)
print(summary.parts, summary.users)
"""


def actors_of(driver: int) -> list[int]:
    """Processes of actors below *driver*."""
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_text()
            except OSError:
                continue

    def is_below(process: int) -> bool:
        return process == driver or (process in parents and is_below(parents[process]))

    return [process for process, name in names.items() if name.startswith("ray::_RemoteMaker") and is_below(process)]


def test_two_actors_one_of_them_killed_make_the_bytes_of_one_process(dataset, matching_bundle, tmp_path) -> None:
    pytest.importorskip("ray", reason="no Ray: pip install 'taesar[ray]'")
    write_composite(dataset, matching_bundle, target="food", rule="anticipate", out=tmp_path / "local")
    arguments = [str(path) for path in (dataset.directory, matching_bundle.directory, tmp_path / "ray")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    work = work_folder_of(tmp_path / "ray")
    try:
        while not (made := list(work.glob("part-*"))):
            assert driver.poll() is None
            time.sleep(0.002)
        os.kill(actors_of(driver.pid)[0], signal.SIGKILL)
        out, _ = driver.communicate(timeout=120)
    finally:
        driver.kill()
    num_parts, num_users = map(int, out.split())

    assert driver.returncode == 0
    assert len(made) < num_parts == num_users == len(dataset.user_ids)
    for name in ("composite.parquet", "counts.parquet", "mapping.parquet", "decisions.parquet", "food.inter"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    parts = [folder / "interactions" / "part-00000.parquet" for folder in (tmp_path / "ray", tmp_path / "local")]
    assert parts[0].read_bytes() == parts[1].read_bytes()


def test_without_ray_one_line_says_what_to_install(monkeypatch) -> None:
    from models.composite.ray_engine import RayEngine

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"needs Ray: pip install 'taesar\[ray\]'$"):
        RayEngine()
