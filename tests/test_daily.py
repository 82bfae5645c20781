"""The daily script over three days against a running service: a refresh, a new item, and a gate that says no."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.http.application import create_app
from app.main import Server
from app.settings import Settings
from models.bundle import load_bundle, with_tunings
from models.tuning import Guard, TargetTuning
from tests.conftest import write_interactions
from tests.services import eventually

ROOT = Path(__file__).resolve().parent.parent
DAILY = ROOT / "examples" / "daily"
SMALL = "--width 16 --heads 2 --layers 1 --batch-size 8 --device cpu --no-trial"
LEARNS = f"{SMALL} --epochs 20 --expert-epochs 3 --learning-rate 0.005"
LEARNS_NOTHING = f"{SMALL} --epochs 0 --expert-epochs 0"
NEW_ITEM = "food-fresh"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """The address of a service without a bundle, which loads what the script publishes."""
    (tmp_path / "state" / "bundles").mkdir(parents=True)
    settings = Settings(bundle_root=tmp_path / "state" / "bundles", device="cpu", data=tmp_path / "data", port=0)
    server = Server(create_app(settings), settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def days(folder: Path) -> list[Path]:
    """Three days of a log: what is new on each. On the second, twelve people buy an item that nobody had before."""
    header, *rows = write_interactions(folder / "log.csv", num_users=40).read_text(encoding="utf-8").splitlines()
    fresh = [f"u{user:03d},{NEW_ITEM},food,{1_150 + place}" for user in range(12) for place in (1, 3)]
    fresh += [f"u{user:03d},food-{place:02d},food,{1_150 + place}" for user in range(12) for place in (4, 5)]
    parts = (
        [row for row in rows if int(row.rsplit(",", 1)[1]) < 1_140],
        [*(row for row in rows if 1_140 <= int(row.rsplit(",", 1)[1]) < 1_160), *fresh],
        [row for row in rows if int(row.rsplit(",", 1)[1]) >= 1_160],
    )
    paths = [folder / f"day-{number}.csv" for number in (1, 2, 3)]
    for path, part in zip(paths, parts, strict=True):
        path.write_text("\n".join([header, *part]) + "\n", encoding="utf-8")
    return paths


def run_day(state: Path, log: Path, service: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, DAILY / "daily.py", state, log, "--targets", "food", "--service", service]
    return subprocess.run(
        [*map(str, command), "--day", log.stem, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )


def leave_alone(folder: Path) -> str:
    """
    Write into a bundle what a trial finds on this log, whose last item alone says which comes next: replace nothing.

    The trial itself takes longer than this test may; a refresh keeps what it found.
    """
    bundle = load_bundle(folder)
    tuning = TargetTuning(guard=Guard(0, 0, "Nothing is replaced."))
    return with_tunings(bundle, (tuning,) * len(bundle.vocabulary.domains), bundle.provenance).version


def serving(service: str) -> str | None:
    """The version that answers."""
    loaded = httpx.get(f"{service}/models", trust_env=False).json()["loaded"]
    return next((one["version"] for one in loaded if one["active"]), None)


def regenerated(service: str) -> dict[str, Any]:
    """A history with the item of day two in it, for target food."""
    items = [("food-01", "food"), ("kitchen-02", "kitchen"), (NEW_ITEM, "food"), ("books-04", "books")]
    body = {
        "target_domain": "food",
        "sequences": [{"user_id": "me", "items": [{"item_id": item, "domain": domain} for item, domain in items]}],
    }
    answer = httpx.post(f"{service}/regenerate", json=body, trust_env=False).raise_for_status()
    return dict(answer.json()["sequences"][0])


def test_three_days_against_a_running_service(tmp_path, service) -> None:
    state = tmp_path / "state"
    first, second, third = days(tmp_path)

    done = run_day(state, first, service, "--train", LEARNS)
    assert done.returncode == 0, done.stderr
    one = serving(service)
    assert json.loads((state / "current.json").read_text(encoding="utf-8"))["version"] == one
    # The item of tomorrow is of the target domain: it stays where it is, and is counted
    before = regenerated(service)
    assert NEW_ITEM in before["items"]
    assert before["unknown_kept"] == 1

    one = leave_alone(state / "bundles" / "day-1")
    done = run_day(state, second, service)
    assert done.returncode == 0, done.stderr
    two = serving(service)
    assert two != one
    after = regenerated(service)
    assert NEW_ITEM in after["items"]
    assert after["unknown_kept"] == 0
    assert (state / "results" / "food" / "day-2" / "interactions").is_dir()

    done = run_day(state, third, service, "--anew", "--train", LEARNS_NOTHING)
    assert done.returncode == 1
    assert "the gate kept the new bundle out, day-2 goes on serving" in done.stderr
    assert "WORSE than" in done.stderr
    assert serving(service) == two
    assert not (state / "bundles" / "day-3").exists()
    assert (state / "rejected" / "day-3" / "manifest.json").is_file()

    lineage = json.loads((state / "results" / "food" / "day-2" / "summary.json").read_text(encoding="utf-8"))["lineage"]
    assert lineage["bundle"]["version"] == two
    assert lineage["bundle"]["init"]["version"] == one
    assert lineage["dataset"]["source"]["name"] == "day-2.csv"
    assert [ancestor["source"]["name"] for ancestor in lineage["dataset"]["extends"]] == ["day-1.csv"]


def test_the_unit_the_timer_and_the_job_run_the_script() -> None:
    """What they name is there, and the job does not ask a gate again that said no."""
    unit = (DAILY / "taesar-daily.service").read_text(encoding="utf-8")
    job = yaml.safe_load((DAILY / "cronjob.yaml").read_text(encoding="utf-8"))
    rules = job["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]

    assert "examples/daily/daily.py" in unit
    assert (DAILY / "taesar-daily.timer").read_text(encoding="utf-8").count("OnCalendar=") == 1
    assert job["kind"] == "CronJob"
    assert rules[0]["onExitCodes"]["values"] == [1]
