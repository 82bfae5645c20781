"""The model in a process of its own: the same answers, and no kill loses a request."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from app.errors import ModelProcessDiedError
from app.serving import model_process
from app.serving.model_process import JOBS, REQUESTS, Call, ModelProcess, RemoteRegenerator
from models.bundle import load_bundle
from models.decoding.regenerator import Regenerator
from models.errors import BundleCorruptError, BundleMissingFileError, UnknownDomainError
from tests.services import eventually

ROOT = Path(__file__).resolve().parents[3]
SEQUENCES = [np.asarray(tokens, dtype=np.int32) for tokens in ([1, 22, 43, 2, 44], [5], [], [21, 22, 41, 60] * 5)]


@pytest.fixture
def process(bundle):
    process = ModelProcess.start(bundle.directory, "paper", torch.device("cpu"))
    yield process
    process.close()


def runs(process_id):
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def as_lists(results):
    return [
        (one.token_ids.tolist(), one.num_read, *(column.tolist() for column in vars(one.steps).values()))
        for one in results
    ]


@pytest.mark.parametrize("channel", [REQUESTS, JOBS])
@pytest.mark.parametrize("rule", ["paper", "anticipate"])
def test_it_answers_as_a_regenerator_here_does_to_the_bit(bundle, rule, channel):
    process = ModelProcess.start(bundle.directory, rule, torch.device("cpu"))
    there, here = RemoteRegenerator(process, channel), Regenerator(load_bundle(bundle.directory), rule)

    for training_rows in (False, True):
        expected = as_lists(here.regenerate(SEQUENCES, "kitchen", training_rows=training_rows))
        found = as_lists(there.regenerate(SEQUENCES, "kitchen", training_rows=training_rows))
        assert repr(found) == repr(expected)  # NaN is not equal to itself
    assert there.max_items == here.max_items
    process.close()


def test_what_a_call_raises_there_is_raised_here_and_the_next_is_answered(process):
    there = RemoteRegenerator(process, REQUESTS)
    with pytest.raises(UnknownDomainError, match="garden"):
        there.regenerate(SEQUENCES, "garden")

    assert len(there.regenerate(SEQUENCES, "food")) == len(SEQUENCES)


def test_a_bundle_that_cannot_be_loaded_is_an_error_of_the_start(tmp_path, make_bundle):
    directory = make_bundle(tmp_path / "bundle", seed=3).directory
    with pytest.raises(BundleMissingFileError):
        ModelProcess.start(tmp_path, "paper", torch.device("cpu"))
    (directory / "base.safetensors").write_bytes(b"")
    with pytest.raises(BundleCorruptError, match=r"base\.safetensors"):
        ModelProcess.start(directory, "paper", torch.device("cpu"))


def test_a_process_killed_between_calls_is_started_again(process):
    there, first = RemoteRegenerator(process, REQUESTS), process.process_id
    expected = as_lists(there.regenerate(SEQUENCES, "food"))
    os.kill(first, signal.SIGKILL)
    found = as_lists(there.regenerate(SEQUENCES, "food"))
    eventually(lambda: process.outage is None and process.process_id != first, seconds=30)

    assert repr(found) == repr(expected)
    assert not runs(first)


def test_a_call_is_made_again_when_its_process_is_killed(process):
    """A stopped process takes the call and does not answer; then it is killed."""
    there, answered, victim = RemoteRegenerator(process, REQUESTS), [], process.process_id
    os.kill(victim, signal.SIGSTOP)
    caller = threading.Thread(target=lambda: answered.append(len(there.regenerate(SEQUENCES, "food"))))
    caller.start()
    time.sleep(0.2)  # for the call to be under way
    assert not answered
    os.kill(victim, signal.SIGKILL)
    caller.join(30)

    assert answered == [len(SEQUENCES)]


def test_a_call_that_ends_two_processes_is_given_up(process):
    there = RemoteRegenerator(process, REQUESTS)

    class Poison:
        """Ends whoever reads it."""

        def __len__(self):
            return 1

        def __reduce__(self):
            return os._exit, (9,)

    with pytest.raises(ModelProcessDiedError, match="2 times"):
        there.regenerate([Poison()], "food")
    eventually(lambda: process.outage is None, seconds=30)

    assert len(there.regenerate(SEQUENCES, "food")) == len(SEQUENCES)


@pytest.fixture
def impatient(monkeypatch):
    """Calls are overdue after a few seconds, late after a moment."""
    monkeypatch.setattr(model_process, "HANG_SECONDS", 5.0)
    monkeypatch.setattr(model_process, "HANG_SECONDS_PER_ITEM", 0.0)
    monkeypatch.setattr(model_process, "LATE_SHARE", 0.01)
    monkeypatch.setattr(model_process, "WATCH_SECONDS", 0.05)


LARGER_THAN_THE_PIPE = [np.full(500_000, 21, dtype=np.int32)]


@pytest.mark.parametrize(
    ("channel", "sequences"),
    [(REQUESTS, SEQUENCES), (JOBS, SEQUENCES), (JOBS, LARGER_THAN_THE_PIPE)],
    ids=["request", "job", "larger-than-the-pipe"],
)
def test_a_process_that_hangs_is_killed_and_its_call_is_made_again(impatient, bundle, channel, sequences):
    """A stopped process stands for one; it does not even read a call, which may be larger than the pipe."""
    process = ModelProcess.start(bundle.directory, "paper", torch.device("cpu"))
    hanging, answered = process.process_id, []
    os.kill(hanging, signal.SIGSTOP)
    there = RemoteRegenerator(process, channel)
    caller = threading.Thread(target=lambda: answered.append(len(there.regenerate(sequences, "food"))), daemon=True)
    caller.start()
    caller.join(60)

    assert answered == [len(sequences)]
    assert not runs(hanging)
    process.close()


def test_a_larger_call_may_take_longer_before_its_process_is_taken_for_hung():
    """The largest request and chunk, at a tenth of the speed of the slowest rule."""
    for num_sequences in (1, 128, 512):
        call = Call([np.zeros(128, dtype=np.int32)] * num_sequences, "food", False)

        assert call.hang_seconds > num_sequences * 128 / 200


def test_a_process_that_hangs_while_it_loads_is_an_error_of_the_start(bundle, monkeypatch):
    monkeypatch.setattr(model_process, "LOAD_SECONDS", 0.0)  # no process loads in no time
    with pytest.raises(ModelProcessDiedError, match="while it loaded"):
        ModelProcess.start(bundle.directory, "paper", torch.device("cpu"))


def test_calls_do_not_wait_anew_for_a_process_that_has_been_gone_for_long(tmp_path, make_bundle, monkeypatch):
    """Or those in line would wait one after the other."""
    bundle = make_bundle(tmp_path / "bundle", seed=3)
    process = ModelProcess.start(bundle.directory, "paper", torch.device("cpu"))
    monkeypatch.setattr(model_process, "RESTART_SECONDS", 3600.0)
    bundle.directory.rename(tmp_path / "elsewhere")
    os.kill(process.process_id, signal.SIGKILL)
    eventually(lambda: process.outage is not None and "cannot be started" in process.outage, seconds=30)
    two_hours_later = time.monotonic() + 7200.0
    monkeypatch.setattr(time, "monotonic", lambda: two_hours_later)
    there, refused = RemoteRegenerator(process, REQUESTS), []

    def call():
        with pytest.raises(ModelProcessDiedError, match="cannot be started"):
            there.regenerate(SEQUENCES, "food")
        refused.append(True)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(30)
    process.close()

    assert refused


class Announced:
    """A sequence that says when it is sent: the call that it belongs to is then under way."""

    def __init__(self, sequence):
        self.sequence = sequence
        self.sent = threading.Event()

    def __len__(self):
        return len(self.sequence)

    def __reduce__(self):
        self.sent.set()
        return np.asarray, (self.sequence.tolist(), np.int32)


def test_a_job_and_a_request_do_not_wait_for_each_other(process):
    """A request is answered while a job's call of some seconds is under way."""
    requests, jobs, done = RemoteRegenerator(process, REQUESTS), RemoteRegenerator(process, JOBS), threading.Event()
    first = Announced(SEQUENCES[3])

    def job():
        while not done.is_set():
            jobs.regenerate([first, *[SEQUENCES[3]] * 2000], "food")

    working = threading.Thread(target=job)
    working.start()
    assert first.sent.wait(30)
    answers = [len(requests.regenerate(SEQUENCES, "food")) for _ in range(3)]
    still_working = working.is_alive()
    done.set()
    working.join(60)

    assert answers == [len(SEQUENCES)] * 3
    assert still_working


def test_closing_ends_the_process_and_later_calls_are_refused(process):
    there, process_id = RemoteRegenerator(process, REQUESTS), process.process_id
    process.close()

    assert not runs(process_id)
    with pytest.raises(ModelProcessDiedError, match="stopped"):
        there.regenerate(SEQUENCES, "food")


def test_closing_does_not_wait_for_a_call_that_hangs(process):
    """A stopped process stands for a job's chunk of minutes; its caller is told."""
    jobs, process_id, outcome = RemoteRegenerator(process, JOBS), process.process_id, []
    only = Announced(SEQUENCES[0])

    def job():
        try:
            jobs.regenerate([only], "food")
        except ModelProcessDiedError as error:
            outcome.append(error)

    os.kill(process_id, signal.SIGSTOP)
    working = threading.Thread(target=job)
    working.start()
    assert only.sent.wait(30)
    process.close()
    working.join(30)

    assert not runs(process_id)
    assert len(outcome) == 1


def test_forgetting_a_model_does_not_wait_for_its_process(bundle):
    """The last reference may go on the event loop. A stopped process ends late: it has to be killed."""
    process = ModelProcess.start(bundle.directory, "paper", torch.device("cpu"))
    process_id = process.process_id
    os.kill(process_id, signal.SIGSTOP)
    del process
    ran_on = runs(process_id)
    eventually(lambda: not runs(process_id), seconds=30)

    assert ran_on


def test_a_model_that_nobody_refers_to_any_more_ends_its_process(bundle):
    process = ModelProcess.start(bundle.directory, "paper", torch.device("cpu"))
    there, process_id = RemoteRegenerator(process, REQUESTS), process.process_id
    del process
    assert runs(process_id)
    del there

    eventually(lambda: not runs(process_id), seconds=30)


def test_the_signals_that_stop_a_service_leave_its_model_running_until_the_service_says(process):
    for sent in (signal.SIGINT, signal.SIGTERM):
        os.kill(process.process_id, sent)

    assert len(RemoteRegenerator(process, REQUESTS).regenerate(SEQUENCES, "food")) == len(SEQUENCES)
    assert process.outage is None


def test_when_the_service_is_killed_its_model_ends_too(bundle):
    code = (
        "import sys, time, torch; from pathlib import Path; from app.serving.model_process import ModelProcess\n"
        "process = ModelProcess.start(Path(sys.argv[1]), 'paper', torch.device('cpu'))\n"
        "print(process.process_id, flush=True); time.sleep(600)"
    )
    service = subprocess.Popen(
        [sys.executable, "-c", code, str(bundle.directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    process_id = int(service.stdout.readline())
    assert runs(process_id)
    service.kill()
    service.communicate()

    eventually(lambda: not runs(process_id), seconds=30)


def test_requests_in_flight_when_the_models_process_is_killed_are_answered(serving, payload):
    """Over HTTP: nobody notices, and the service is ready again."""
    client = serving()
    body = payload("b01 f02 k03 b04")
    expected = client.post("/regenerate", json=body).json()
    process = client.app.state.inference.registry.active().process
    killed = process.process_id
    os.kill(killed, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (killed, signal.SIGKILL))
    killer.start()
    answers = client.together(*[body] * 16)
    killer.join()
    eventually(lambda: client.get("/readyz").status_code == 200, seconds=30)

    assert [answer.status_code for answer in answers] == [200] * 16
    assert all(answer.json() == expected for answer in answers)
    assert process.process_id != killed


def test_while_the_models_process_hangs_the_service_is_not_ready_and_then_answers(impatient, serving, payload):
    client = serving()
    body, answers = payload("b01 f02 k03 b04"), []
    expected = client.post("/regenerate", json=body).json()
    os.kill(client.app.state.inference.registry.active().process.process_id, signal.SIGSTOP)
    caller = threading.Thread(target=lambda: answers.extend(client.together(*[body] * 4)), daemon=True)
    caller.start()
    eventually(lambda: client.get("/readyz").status_code == 503, seconds=30)
    alive, reason = client.get("/healthz").status_code, client.get("/readyz").json()["checks"]["model"]
    caller.join(60)
    eventually(lambda: client.get("/readyz").status_code == 200, seconds=30)

    assert alive == 200
    assert "not answered" in reason
    assert [answer.json() for answer in answers] == [expected] * 4


def test_while_no_process_can_be_started_the_service_is_alive_but_not_ready(serving, payload, tmp_path, make_bundle):
    """It is tried again and again: the bundle's files come back, and so does the model."""
    directory = make_bundle(tmp_path / "bundle", seed=3).directory
    client = serving(bundle=directory)
    hidden = directory.with_name("hidden")
    directory.rename(hidden)
    os.kill(client.app.state.inference.registry.active().process.process_id, signal.SIGKILL)
    eventually(lambda: client.get("/readyz").status_code == 503, seconds=30)
    eventually(lambda: "manifest.json" in client.get("/readyz").json()["checks"]["model"], seconds=30)
    alive = client.get("/healthz").status_code
    hidden.rename(directory)
    eventually(lambda: client.get("/readyz").status_code == 200, seconds=30)

    assert alive == 200
    assert client.post("/regenerate", json=payload("b01 k02")).status_code == 200
