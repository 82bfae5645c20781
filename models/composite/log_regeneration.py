"""Every sequence of a log regenerated, a few at a time: as many as take about two seconds, so that progress shows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from models.composite.decisions import KeptDecisions
from models.composite.mixed_log import MixedLog
from models.composite.regenerated_rows import RegeneratedUser, regenerated_user
from models.data.dataset import TokenArray
from models.decoding.regenerator import Regenerator

# Sequences of the first step, and of any. What becomes of a sequence does not depend on the others of its step.
FIRST_STEP, FEWEST, MOST = 64, 8, 512
SECONDS_PER_STEP = 2.0


@dataclass(frozen=True)
class RegeneratedStep:
    """
    Some users of a log, regenerated.

    Args:
        users: in the log's order.
        reads: what was read of each.
        taken_over: how many were decided before.
    """

    users: list[RegeneratedUser]
    reads: list[TokenArray]
    taken_over: int


def regenerate_steps(
    log: MixedLog, regenerator: Regenerator, kept: KeptDecisions | None = None
) -> Iterator[RegeneratedStep]:
    """Every sequence of *log* as a training row, in order; those that were decided before are taken from *kept*."""
    total, done, size = len(log.sequences), 0, FIRST_STEP
    while done < total:
        started = time.perf_counter()
        users = range(done, min(total, done + size))
        reads: list[TokenArray] = [log.history(user, regenerator.max_items).token_ids for user in users]
        found = [
            None if kept is None else kept.of(log.user_ids[user], one) for user, one in zip(users, reads, strict=True)
        ]
        changed = [one for one, known in zip(reads, found, strict=True) if known is None]
        anew = iter(regenerator.regenerate(changed, log.target, training_rows=True))
        regenerated = [
            regenerated_user(log, user, regenerator.max_items, next(anew) if known is None else known)
            for user, known in zip(users, found, strict=True)
        ]
        yield RegeneratedStep(regenerated, reads, len(reads) - len(changed))
        done += len(users)
        pace = SECONDS_PER_STEP / max(time.perf_counter() - started, 1e-3)
        size = max(FEWEST, min(MOST, round(len(users) * pace)))


def regenerate_log(log: MixedLog, regenerator: Regenerator) -> list[RegeneratedUser]:
    """Every sequence of *log* as a training row, in order."""
    return [user for step in regenerate_steps(log, regenerator) for user in step.users]
