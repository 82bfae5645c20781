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
Path(sys.argv[4]).write_text(f"{summary.parts} {summary.users}")
"""

needs_cluster = pytest.mark.skipif(
    not os.environ.get("TAESAR_TEST_RAY"), reason="no Ray cluster: `make ray-test` starts one, which takes both cores"
)


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


@needs_cluster
def test_two_actors_one_of_them_killed_make_the_bytes_of_one_process(dataset, matching_bundle, tmp_path) -> None:
    write_composite(dataset, matching_bundle, target="food", rule="anticipate", out=tmp_path / "local")
    places = (dataset.directory, matching_bundle.directory, tmp_path / "ray", tmp_path / "summary")
    arguments = [str(path) for path in places]
    command = [sys.executable, "-c", DRIVER, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    work = work_folder_of(tmp_path / "ray")
    with (
        (tmp_path / "errors").open("w+") as errors,
        subprocess.Popen(command, stdout=errors, stderr=errors, text=True, cwd=ROOT, env=environment) as driver,
    ):
        try:
            while not (made := list(work.glob("part-*"))) and driver.poll() is None:
                time.sleep(0.002)
            if made:
                os.kill(actors_of(driver.pid)[0], signal.SIGKILL)
            driver.wait(timeout=300)
        finally:
            driver.kill()
        errors.seek(0)
        said = errors.read()
    assert driver.returncode == 0, said
    num_parts, num_users = map(int, (tmp_path / "summary").read_text().split())

    assert len(made) < num_parts == num_users == len(dataset.user_ids)
    for path in (tmp_path / "local").rglob("*.*"):
        if path.name != "summary.json":
            assert (tmp_path / "ray" / path.relative_to(tmp_path / "local")).read_bytes() == path.read_bytes(), (
                path.name
            )


def test_without_ray_one_line_says_what_to_install(monkeypatch) -> None:
    from models.composite.ray_engine import RayEngine

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(EngineError, match=r"needs Ray: pip install 'taesar\[ray\]'$"):
        RayEngine()
