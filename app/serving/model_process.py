"""
The model in a process of its own, so that networks and HTTP do not wait for each other's interpreter lock.

One process holds one bundle under one rule, and answers over two pipes: one for requests, one for jobs, each a call at
a time, so that a chunk of a job and a batch of requests are computed side by side. Calls hold no state: a process that
dies (a kill, no memory, a failed CUDA context) is started again and the calls that it owed are made once more. One that
hangs (stopped, a call of CUDA that never returns) is killed once a call is far overdue, which makes it one that died. A
call that ends two processes in a row is given up: it may be the cause.

The process ends when the pipes are closed: by ``close``, when nobody refers to the model any more, or because the
service itself was killed. It ignores SIGINT and SIGTERM: the service stops it after its last answer.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch

from app.errors import ModelNotRunningError, ModelProcessDiedError
from app.runtime.logs import logger
from app.runtime.memory import settle_heap
from app.runtime.tracing import configure_tracing, current_traceparent, span, stop_tracing
from models.bundle import BundleDescription, describe_bundle, load_bundle
from models.data.dataset import TokenArray
from models.decoding.regenerator import Regenerated, Regenerator
from models.decoding.rules import Rule, load_rule
from models.errors import BundleMismatchError

log = logger(__name__)

# Not fork: threads and CUDA do not survive it. Not spawn: every model would import torch anew, for seconds.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["__main__", __name__])

# After a failed CUDA context every later call fails too: the process ends, and a new one makes a new context.
FATAL_ERRORS: tuple[type[Exception], ...] = tuple(filter(None, [getattr(torch, "AcceleratorError", None)]))
FATAL_EXIT = 70
REQUESTS, JOBS = range(2)
# From the end of a process, how long calls wait for the next one; loading a large bundle takes seconds. Later ones fail
# at once: were each to wait anew, those in line would wait one after the other.
RESTART_SECONDS = 60.0
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 30.0
# What a call under way is given when the model is closed; nobody waits for it but a job, which repeats it.
CLOSE_SECONDS = 2.0
ATTEMPTS = 2
# A call that is not answered in this time will not be. Some 20,000 items a second are usual, 2,000 under the slowest
# rule with 15,000 items: 50 leave room for far larger vocabularies on an overloaded machine. The constant part is for
# what does not grow with the call, such as compiling a kernel at the first one.
HANG_SECONDS, HANG_SECONDS_PER_ITEM = 300.0, 0.02
# After this part of it no more requests should come here, although the answer may still.
LATE_SHARE = 0.1
# Loading reads a bundle, perhaps over a slow network, and makes a CUDA context.
LOAD_SECONDS = 600.0
WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Call:
    """What is asked of the process: one call of ``Regenerator.regenerate``."""

    token_ids: Sequence[TokenArray]
    target: str
    training_rows: bool
    num_likely: int = 0
    traceparent: str | None = None

    @property
    def hang_seconds(self) -> float:
        """Without an answer after this time, the process hangs."""
        return HANG_SECONDS + HANG_SECONDS_PER_ITEM * sum(map(len, self.token_ids))


@dataclass(frozen=True)
class _UnderWay:
    """A call that *child* has not answered yet."""

    child: _Child
    begun: float
    hang_seconds: float

    def lasts_longer_than(self, share: float) -> bool:
        return time.monotonic() - self.begun > share * self.hang_seconds


class RemoteRegenerator:
    """
    A ``Regenerator`` whose networks are in another process; one call at a time, from any thread.

    Args:
        process: the process; kept alive by this reference.
        channel: REQUESTS or JOBS.
    """

    def __init__(self, process: ModelProcess, channel: int) -> None:
        self._process = process
        self._channel = channel

    @property
    def bundle(self) -> BundleDescription:
        """What the process has loaded."""
        return self._process.bundle

    @property
    def max_items(self) -> int:
        """Most items of a sequence that are read."""
        return load_rule(self._process.rule).max_items(self.bundle.config)

    def regenerate(
        self, sequences: Sequence[TokenArray], target: str, *, training_rows: bool = False, num_likely: int = 0
    ) -> list[Regenerated]:
        """
        As ``Regenerator.regenerate``.

        Raises:
            UnknownDomainError: the bundle has no such domain.
            ModelProcessDiedError: two processes ended or hung over this call, or none could be started in time.
            Exception: what else the call raised over there; a RuntimeError with its words if it cannot be sent.
        """
        self.bundle.vocabulary.domain_index(target)
        call = Call(list(sequences), target, training_rows, num_likely, current_traceparent())
        return self._process.call(self._channel, call)


class ModelProcess:
    """
    A bundle loaded in another process. Build it with ``start``.

    Args:
        supervisor: keeps the process running.
    """

    def __init__(self, supervisor: _Supervisor) -> None:
        self.bundle = supervisor.bundle
        self.rule: Rule = supervisor.rule
        self._supervisor = supervisor
        # The last reference may go on the event loop, which must not wait for a process to end.
        self._forgotten = weakref.finalize(self, supervisor.forget)

    @classmethod
    def start(
        cls,
        directory: Path,
        rule: Rule,
        device: torch.device,
        *,
        on_restart: Callable[[], None] = lambda: None,
        otlp_endpoint: str | None = None,
    ) -> ModelProcess:
        """
        Load the bundle of *directory* in a new process, which sends traces to *otlp_endpoint* if there is one.

        *on_restart* is told whenever it died and another one took its place.

        Raises:
            BundleError: it cannot be loaded.
            ModelProcessDiedError: the process ended while it loaded it, for want of memory, say.
        """
        supervisor = _Supervisor(describe_bundle(directory), rule, device, on_restart, otlp_endpoint)
        supervisor.start()
        return cls(supervisor)

    def close(self) -> None:
        """End the process and wait for it, killing it after CLOSE_SECONDS; again: nothing."""
        if self._forgotten.detach() is not None:
            self._supervisor.close()

    @property
    def process_id(self) -> int | None:
        """Of the process that answers now; None while there is none."""
        return self._supervisor.process_id

    @property
    def outage(self) -> str | None:
        """Why nothing can be computed just now, or None."""
        return self._supervisor.outage

    def call(self, channel: int, call: Call) -> list[Regenerated]:
        """See ``RemoteRegenerator.regenerate``."""
        return self._supervisor.call(channel, call)


class _Child:
    """One process and the service's ends of its pipes."""

    def __init__(self, bundle: BundleDescription, rule: Rule, device: torch.device, otlp_endpoint: str | None) -> None:
        pipes = [_context.Pipe() for _ in (REQUESTS, JOBS)]
        self.connections = [ours for ours, _ in pipes]
        theirs = [end for _, end in pipes]
        arguments = (theirs, bundle.directory, rule, str(device), torch.get_num_threads(), otlp_endpoint)
        self.process: ForkServerProcess = _context.Process(
            target=_answer_calls, args=arguments, name=f"taesar-model-{bundle.version}", daemon=True
        )
        try:
            self.process.start()
            for end in theirs:
                end.close()
            if not self.connections[REQUESTS].poll(LOAD_SECONDS):
                self.process.kill()
            loaded = self.connections[REQUESTS].recv()
        except (EOFError, OSError) as error:
            self.hang_up()
            raise ModelNotRunningError(f"the model's process ended while it loaded {bundle.directory}") from error
        if isinstance(loaded, Exception):
            self.hang_up()
            raise loaded
        if loaded != bundle.version:
            self.hang_up()
            raise BundleMismatchError(f"{bundle.directory}: holds version {loaded} now, not {bundle.version}")

    def hang_up(self) -> None:
        """
        Both pipes carry nothing any more, for the process and for calls under way.

        They are not closed before the last call has let go of them: the number of a closed file goes to the next one
        that is opened, and a call that was still writing here would go on in the next process's pipe.
        """
        for connection in self.connections:
            with socket.socket(fileno=os.dup(connection.fileno())) as ours, contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Wait for the end of a process that was hung up on; after CLOSE_SECONDS it is killed."""
        self.process.join(CLOSE_SECONDS)
        if self.process.is_alive():  # in the middle of a call whose caller has gone
            self.process.kill()
            self.process.join()


class _Supervisor:
    """Starts the process, starts it again when it dies, and hands calls to the one that lives."""

    def __init__(
        self,
        bundle: BundleDescription,
        rule: Rule,
        device: torch.device,
        on_restart: Callable[[], None],
        otlp_endpoint: str | None,
    ) -> None:
        self._on_restart = on_restart
        self._otlp_endpoint = otlp_endpoint
        self.bundle = bundle
        self.rule: Rule = rule
        self._device = device
        self._one_at_a_time = [threading.Lock(), threading.Lock()]
        self._changed = threading.Condition()
        # Changed under _changed; read without it where any recent value will do.
        self._child: _Child | None = None
        self._closed = False
        self._outage: str | None = "not started"
        self._out_since: float | None = None
        # By channel; each replaced by the one call that holds its lock.
        self._under_way: list[_UnderWay | None] = [None, None]

    @property
    def process_id(self) -> int | None:
        child = self._child
        return None if child is None else child.process.pid

    @property
    def outage(self) -> str | None:
        call = self._under_way[REQUESTS]
        late = call is not None and call.lasts_longer_than(LATE_SHARE)
        return self._outage or ("its process has not answered a call for long" if late else None)

    def start(self) -> None:
        child = _Child(self.bundle, self.rule, self._device, self._otlp_endpoint)
        self._put(child)
        threading.Thread(target=self._watch, args=(child,), name="taesar-model-watch", daemon=True).start()

    def call(self, channel: int, call: Call) -> list[Regenerated]:
        with self._one_at_a_time[channel]:
            died: _Child | None = None
            for _ in range(ATTEMPTS):
                child = self._living(other_than=died)
                self._under_way[channel] = _UnderWay(child, time.monotonic(), call.hang_seconds)
                try:
                    child.connections[channel].send(call)
                    outcome = child.connections[channel].recv()
                except (EOFError, OSError):
                    died = child
                    continue
                finally:
                    self._under_way[channel] = None
                if isinstance(outcome, Exception):
                    raise outcome
                results: list[Regenerated] = outcome
                return results
        raise ModelProcessDiedError(f"the model's process ended {ATTEMPTS} times over the same call")

    def close(self) -> None:
        child = self._stopped()
        if child is not None:
            child.end()

    def forget(self) -> None:
        """As ``close``, but waiting elsewhere."""
        child = self._stopped()
        if child is not None:
            with contextlib.suppress(RuntimeError):  # no thread starts while the interpreter ends; so does the process
                threading.Thread(target=child.end, name="taesar-model-end", daemon=True).start()

    def _stopped(self) -> _Child | None:
        """The process that answered until now, hung up on; nothing is answered any more."""
        with self._changed:
            self._closed = True
            child, self._child = self._child, None
            self._changed.notify_all()
        if child is not None:
            child.hang_up()
        return child

    def _living(self, other_than: _Child | None) -> _Child:
        with self._changed:
            # The watcher may not have seen yet that the process ended.
            out_since = time.monotonic() if self._out_since is None else self._out_since
            found = self._changed.wait_for(
                lambda: self._closed or self._child not in (None, other_than),
                max(0.0, out_since + RESTART_SECONDS - time.monotonic()),
            )
            if not found or self._child is None:
                raise ModelNotRunningError(f"the model's process does not run: {self._outage or 'it was stopped'}")
            return self._child

    def _put(self, child: _Child) -> None:
        with self._changed:
            if self._closed:
                child.hang_up()
                return
            self._child, self._outage, self._out_since = child, None, None
            self._changed.notify_all()

    def _watch(self, child: _Child) -> None:
        while True:
            hung = self._hung_until_its_end(child)
            reason = f"its process {'hung' if hung else 'ended'} with status {child.process.exitcode}"
            with self._changed:
                if self._closed:
                    return
                self._child, self._outage, self._out_since = None, reason, time.monotonic()
            log.error("model_process_died", version=self.bundle.version, status=child.process.exitcode, hung=hung)
            child.hang_up()
            restarted = self._restarted()
            if restarted is None:
                return
            child = restarted

    def _hung_until_its_end(self, child: _Child) -> bool:
        """Wait for the end of the process, killing it when a call is far overdue; whether that was its end."""
        hung = False
        while child.process.is_alive():
            calls = [call for call in self._under_way if call is not None and call.child is child]
            if not hung and any(call.lasts_longer_than(1.0) for call in calls):
                hung = True
                child.process.kill()
            child.process.join(WATCH_SECONDS)
        return hung

    def _restarted(self) -> _Child | None:
        """A new process, sooner or later; None when the model was closed meanwhile."""
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                child = _Child(self.bundle, self.rule, self._device, self._otlp_endpoint)
            except Exception as error:  # whatever keeps it from starting may pass: a full memory, a folder mid-copy
                log.error("model_process_not_started", version=self.bundle.version, reason=str(error))
                with self._changed:
                    self._outage = f"its process cannot be started: {error}"
                    if self._changed.wait_for(lambda: self._closed, delay):
                        return None
                delay = min(2 * delay, LONGEST_DELAY_SECONDS)
                continue
            self._put(child)
            self._on_restart()
            log.warning("model_process_restarted", version=self.bundle.version, process=child.process.pid)
            return child


def _answer_calls(
    connections: Sequence[Connection],
    directory: Path,
    rule: Rule,
    device: str,
    num_threads: int,
    otlp_endpoint: str | None,
) -> None:
    """The other process: load, say the version, answer until both pipes are closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(num_threads)
    configure_tracing(otlp_endpoint, "model")
    try:
        regenerator = Regenerator(load_bundle(directory, device), rule)
    except Exception as error:
        connections[REQUESTS].send(_sendable(error))
        return
    settle_heap()
    connections[REQUESTS].send(regenerator.bundle.version)
    jobs = threading.Thread(target=_answer_channel, args=(connections[JOBS], regenerator))
    jobs.start()
    _answer_channel(connections[REQUESTS], regenerator)
    jobs.join()
    stop_tracing()


def _answer_channel(connection: Connection, regenerator: Regenerator) -> None:
    """Answer until the pipe is closed; whatever else ends it (no memory to read a call) ends the process, too."""
    try:
        _answer_until_closed(connection, regenerator)
    except BaseException:
        os._exit(FATAL_EXIT)  # half a process would keep its callers waiting


def _answer_until_closed(connection: Connection, regenerator: Regenerator) -> None:
    while True:
        try:
            call: Call = connection.recv()
        except (EOFError, OSError):
            return
        outcome: list[Regenerated] | Exception
        try:
            with span("model regenerate", parent=call.traceparent, taesar_sequences=len(call.token_ids)):
                outcome = regenerator.regenerate(
                    call.token_ids, call.target, training_rows=call.training_rows, num_likely=call.num_likely
                )
        except FATAL_ERRORS:
            os._exit(FATAL_EXIT)
        except Exception as error:
            outcome = _sendable(error)
        try:
            connection.send(outcome)
        except OSError:  # nobody waits for it any more
            return


def _sendable(error: Exception) -> Exception:
    """*error*, or its words where it cannot be pickled and read again."""
    try:
        copy: Exception = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return copy
