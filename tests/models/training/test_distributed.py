"""Two processes that `torchrun` starts train what one trains: real processes over Gloo, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from safetensors.torch import load_file

from models.bundle import Bundle
from models.data.dataset import TOKENS, Dataset
from models.network.decoder import Decoder, DecoderConfig
from models.network.losses import next_item_targets
from models.training import distributed
from models.training.joint import JointExpertObjective
from models.training.loop import TrainingConfig
from models.training.objective import HeldOut, PredictionObjective
from models.training.pipeline import NetworkConfig, PipelineConfig, train_bundle
from models.vocabulary import TokenRange

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without Gloo")

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
SHORT = TrainingConfig(learning_rate=2e-3, batch_size=16, max_epochs=2)
# Dropout off: processes draw masks of their own. 30 of the base's 60 items are drawn, experts' 20 are all taken.
CONFIG = PipelineConfig(
    network=NetworkConfig(width=16, inner_width=16, dropout=0.0, attention_dropout=0.0),
    base=SHORT,
    expert=SHORT,
    sampled_softmax=30,
)

PROGRAM = """
import os, sys, time; from pathlib import Path; import torch
from models.training import distributed
from models.data.dataset import load_dataset
from models.training.pipeline import train_bundle
from models.training.loop import Silent
from tests.models.training.test_distributed import CONFIG, CPU

folder, stop_after = Path(sys.argv[2]), sys.argv[3]

class StopAfter(Silent):
    def on_epoch(self, report):
        if distributed.is_main() and f"{report.stage} {report.epoch}" == stop_after:
            os._exit(7)
        if stop_after == "never, slowly" and not distributed.is_main() and report.stage == "base":
            time.sleep(1)

with distributed.join_processes(CPU):
    bundle = train_bundle(load_dataset(Path(sys.argv[1])), folder / "bundle", CONFIG, device=CPU,
                          run_directory=folder / "run", progress=StopAfter())
    (folder / f"version-{distributed.rank()}").write_text(bundle.version)
"""


def torchrun(num_processes: int, dataset: Dataset, folder: Path, stop_after: str = "never") -> int:
    """Exit code of training in so many processes; what they complain of is shown when the test fails."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    command += [str(program), str(dataset.directory), str(folder), stop_after]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    sys.stderr.write(done.stderr)
    return done.returncode


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.stem}.{key}": value
        for path in sorted(directory.glob("*.safetensors"))
        for key, value in load_file(path).items()
    }


@pytest.fixture(scope="module")
def alone(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("alone")
    return train_bundle(dataset, folder / "bundle", CONFIG, device=CPU, run_directory=folder / "run")


@pytest.fixture(scope="module")
def together(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    assert torchrun(2, dataset, folder) == 0
    return folder


def test_two_processes_train_what_one_trains(alone: Bundle, together: Path) -> None:
    """Losses of every epoch and all weights, up to the order of float32 sums, which Adam's first steps enlarge."""
    ours = json.loads((together / "bundle" / "manifest.json").read_text())["provenance"]
    for stage in ("base", "experts"):
        stages = [(ours[stage], alone.provenance[stage])]
        if stage == "experts":
            stages = [(ours[stage][domain], alone.provenance[stage][domain]) for domain in ours[stage]]
        for actual, expected in stages:
            assert len(actual["epochs"]) == 3
            for epoch, expected_epoch in zip(actual["epochs"][1:], expected["epochs"][1:], strict=True):
                assert epoch["loss"] == pytest.approx(expected_epoch["loss"], rel=1e-5)
    actual_weights, expected_weights = weights(together / "bundle"), weights(alone.directory)
    assert actual_weights.keys() == expected_weights.keys()
    for name, expected_weight in expected_weights.items():
        torch.testing.assert_close(actual_weights[name], expected_weight, rtol=1e-3, atol=2e-4, msg=name)


def test_both_processes_hold_the_bundle_that_the_main_one_wrote(together: Path) -> None:
    assert (together / "version-0").read_text() == (together / "version-1").read_text()
    assert not (together / "run").exists()


def test_killed_processes_resume_to_the_same_bundle(together: Path, dataset: Dataset, tmp_path: Path) -> None:
    """The main one ends without a word after the base's first epoch; bit for bit the same weights afterwards."""
    assert torchrun(2, dataset, tmp_path, stop_after="base 1") != 0
    assert (tmp_path / "run" / "base.safetensors").is_file()
    assert torchrun(2, dataset, tmp_path) == 0

    assert (tmp_path / "version-0").read_text() == (together / "version-0").read_text()


def test_the_main_process_removes_no_file_that_another_has_yet_to_read(
    together: Path, dataset: Dataset, tmp_path: Path
) -> None:
    """Killed when all was trained and nothing written: on resuming no step makes the main one wait for a slow one."""
    last = f"expert {dataset.vocabulary.domains[-1]} {SHORT.max_epochs}"
    assert torchrun(2, dataset, tmp_path, stop_after=last) != 0
    assert not (tmp_path / "bundle").exists()
    assert torchrun(2, dataset, tmp_path, stop_after="never, slowly") == 0

    assert (tmp_path / "version-1").read_text() == (together / "version-0").read_text()


class World:
    """Stands for ``num_processes`` processes, seen from one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def be(self, rank: int, num_processes: int) -> None:
        self.monkeypatch.setattr(distributed, "num_processes", lambda: num_processes)
        self.monkeypatch.setattr(distributed, "rank", lambda: rank)


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "kind",
    [PredictionObjective, partial(JointExpertObjective, domains=(TokenRange(1, 20), TokenRange(21, 50)))],
    ids=["base", "joint expert"],
)
def test_every_row_is_in_one_process_and_their_losses_add_up(
    kind: Callable[..., PredictionObjective], num_processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 4 and a last one of 1, fewer rows than processes: weights make the parts' losses the whole's."""
    generator = np.random.default_rng(0)
    objective = kind(
        name="base",
        fingerprint="",
        sequences=[generator.integers(1, 51, length).astype(TOKENS) for length in (2, 9, 3, 5, 7, 2, 4, 8, 6)],
        targets_of=next_item_targets,
        candidates=TokenRange(1, 50),
        validation=HeldOut((), np.zeros(0, dtype=TOKENS)),
        max_length=8,
        batch_size=4,
        seed=1,
    )
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(num_items=50, width=8, inner_width=8, max_length=8, init_std=0.5)).eval()
    whole = list(objective.batches(1))
    world = World(monkeypatch)
    parts = []
    for rank in range(num_processes):
        world.be(rank, num_processes)
        parts.append(list(objective.batches(1)))
    for step, expected in enumerate(whole):
        own = [part[step] for part in parts]
        rows = [row[row != 0].tolist() for part in own if part.weight for row in part.token_ids_BT]

        assert sorted(rows) == sorted(row[row != 0].tolist() for row in expected.token_ids_BT)
        assert sum(part.weight for part in own) == pytest.approx(expected.weight)
        losses = [objective.loss(decoder, part).item() for part in own]
        assert sum(losses) == pytest.approx(objective.loss(decoder, expected).item(), rel=1e-5)
