"""
Readiness: named checks of what the service stands on, run together.

A part of the service contributes probes; ``GET /readyz`` runs all of them and answers 200 only when each says yes.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from app.runtime.logs import logger

log = logger(__name__)

OK = "ok"


@dataclass(frozen=True)
class Probe:
    """
    One named check.

    Args:
        name: the key under which /readyz reports it, e.g. "sql".
        check: returns None when all is well, else the reason, which any stranger may read; of an exception only its
            type is told, since its text may name addresses and passwords. Must not block the event loop: wrap what
            blocks in ``BlockingCheck``.
        restart_mends: only a new process can make it pass again, so liveness fails with it.
        is_advice: requests can be served although it fails; readiness tells it beside its own answer.
    """

    name: str
    check: Callable[[], Awaitable[str | None]]
    restart_mends: bool = False
    is_advice: bool = False


class BlockingCheck:
    """
    A probe's ``check`` that blocks, made to run beside the event loop.

    What it asks may neither answer nor refuse, and then keeps the thread that asked. So there is one thread at most,
    whose answer all who ask meanwhile share; it is none of the event loop's own, which requests need, and the
    interpreter does not wait for it at its exit.

    Args:
        check: see ``Probe``, but blocking.
        patience_seconds: a check that takes longer is reported at once, not waited for again.
    """

    def __init__(self, check: Callable[[], str | None], *, patience_seconds: float) -> None:
        self._check = check
        self._patience_seconds = patience_seconds
        self._begun = 0.0
        self._outcome: Future[str | None] | None = None

    async def __call__(self) -> str | None:
        """See ``Probe``."""
        if self._outcome is None or self._outcome.done():
            self._outcome = self._start()
        lasting = time.monotonic() - self._begun
        if lasting > self._patience_seconds:
            return f"the check of {lasting:.0f} s ago has not returned"
        return await asyncio.wrap_future(self._outcome)

    def _start(self) -> Future[str | None]:
        outcome: Future[str | None] = Future()
        outcome.set_running_or_notify_cancel()  # from here on nobody who stops waiting can cancel it for the others
        self._begun = time.monotonic()
        threading.Thread(target=self._run, args=(outcome,), name="taesar-probe", daemon=True).start()
        return outcome

    def _run(self, outcome: Future[str | None]) -> None:
        try:
            outcome.set_result(self._check())
        except BaseException as error:
            outcome.set_exception(error)


async def run_probes(probes: Sequence[Probe], *, timeout_seconds: float) -> dict[str, str]:
    """Run all *probes* at once; name -> "ok" or the reason why not. Never raises, never takes longer than the limit."""
    reasons = await asyncio.gather(*(_run(probe, timeout_seconds) for probe in probes))
    return {probe.name: reason for probe, reason in zip(probes, reasons, strict=True)}


def failing(checks: Mapping[str, str]) -> list[str]:
    """Names of the checks that did not pass."""
    return [name for name, result in checks.items() if result != OK]


async def _run(probe: Probe, timeout_seconds: float) -> str:
    try:
        async with asyncio.timeout(timeout_seconds):
            return await probe.check() or OK
    except TimeoutError:
        return f"no answer in {timeout_seconds:g} s"
    except Exception as error:  # a check that breaks is a check that fails, whatever it raises
        log.warning("probe_broke", probe=probe.name, reason=f"{type(error).__name__}: {error}")
        return f"the check broke: {type(error).__name__}"
