"""
Readiness: named checks of what the service stands on, run together.

A part of the service contributes probes; ``GET /readyz`` runs all of them and answers 200 only when each says yes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

OK = "ok"


@dataclass(frozen=True)
class Probe:
    """
    One named check.

    Args:
        name: the key under which /readyz reports it, e.g. "sql".
        check: returns None when all is well, else the reason; an exception counts as its text. Must not block the
            event loop: wrap blocking work in ``asyncio.to_thread``.
        restart_mends: only a new process can make it pass again, so liveness fails with it.
    """

    name: str
    check: Callable[[], Awaitable[str | None]]
    restart_mends: bool = False


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
        return f"{type(error).__name__}: {error}"
