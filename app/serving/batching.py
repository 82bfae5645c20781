"""
A bounded micro-batcher: many small asynchronous requests -> few large calls in one thread. Free of torch.

In the order of a request's life:

1. ``submit`` admits all rows of a request, or none (QueueFullError).
2. An idle thread takes what is there at once. A row that came while the thread was computing is given at most
   ``window_seconds`` since its arrival to gather company.
3. ``fair_window`` takes a few batches' worth of rows, one of each request in turn, so that a small request never waits
   for the whole of a large one. ``plan_batches`` cuts it, key by key, where the sum of lengths would pass the cap. A
   window is finished before the next is taken, so no row starves. Rows of short requests make calls of their own, which
   come first; those that arrive meanwhile pass the long ones, one call's worth between two of theirs; and while short
   requests come, long ones are cut smaller, so that nobody waits for more than a part of a call.
4. Rows whose client has left are filtered once, before inputs are paired with results.
5. Answers are given by a second thread, so that the next batch is under way before the clients of the last one wake.
6. A batch that raises gives its exception to every waiter in it; the thread goes on.
7. When the thread itself ends (anything beyond ``Exception``), every waiter gets ModelThreadDiedError, and so does
   every later ``submit``.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

from app.errors import ModelThreadDiedError, QueueFullError, ShuttingDownError

KeyT = TypeVar("KeyT", bound=Hashable)
RowT = TypeVar("RowT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class BatchingConfig:
    """
    Bounds of a batcher.

    Args:
        max_batch_positions: sum of the rows' lengths in one call; a single longer row still runs, alone.
        window_seconds: longest wait for company since a row's arrival, only while the thread is busy.
        max_queued_rows: rows admitted and not yet computed.
        retry_after_seconds: what a refused client is told.
    """

    max_batch_positions: int
    window_seconds: float
    max_queued_rows: int
    retry_after_seconds: int


# Enough rows for keys that take turns to fill their batches, few enough that a newcomer's turn comes soon
WINDOW_BATCHES = 2
# A request of at most this part of a call is a short one
SHORT_SHARE = 1 / 8
# So long after the last short request calls of long ones are still kept to a part: fifty milliseconds instead of two
# hundred, and a fifth more of them for each sequence
SHORT_MEMORY_SECONDS, LONG_SHARE = 1.0, 1 / 4


class _Ticket(Generic[ResultT]):
    """One request: the future of all its results, filled row by row, in any order."""

    def __init__(self, num_rows: int, *, is_short: bool) -> None:
        self.future: Future[list[ResultT]] = Future()
        self.is_short = is_short
        self._results: dict[int, ResultT] = {}
        self._num_rows = num_rows

    @property
    def wanted(self) -> bool:
        """Somebody still waits: not answered, not failed, not cancelled."""
        return not self.future.done()

    def put(self, index: int, result: ResultT) -> bool:
        """Record one row's result; true when it was the last."""
        self._results[index] = result
        return len(self._results) == self._num_rows

    def succeed(self) -> None:
        """Answer, unless the request failed or its client has left."""
        with contextlib.suppress(InvalidStateError):  # asked and done in one: a client may leave at any instant
            self.future.set_result([self._results[index] for index in range(self._num_rows)])

    def fail(self, error: BaseException) -> None:
        """Answer with *error*, likewise."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False)
class QueuedRow(Generic[KeyT, RowT, ResultT]):
    """One row in the queue: what to compute, how long it is, and whose it is."""

    ticket: _Ticket[ResultT]
    index: int
    key: KeyT
    value: RowT
    length: int
    arrived: float
    came_while_busy: bool


class Batcher(Generic[KeyT, RowT, ResultT]):
    """
    Run ``process`` over batches in one thread.

    Args:
        process: (key, rows) -> one result per row, in order; called in the batcher's thread only.
        config: the bounds.
        on_batch: told (rows, seconds) after each batch, in the batcher's thread.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        process: Callable[[KeyT, Sequence[RowT]], Sequence[ResultT]],
        config: BatchingConfig,
        *,
        on_batch: Callable[[int, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process = process
        self._config = config
        self._on_batch = on_batch
        self._clock = clock
        self._changed = threading.Condition()
        # Guarded by _changed:
        self._waiting: deque[QueuedRow[KeyT, RowT, ResultT]] = deque()
        self._num_uncomputed = 0
        self._short_came = -SHORT_MEMORY_SECONDS
        self._busy = False
        self._closing = False
        self._death: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="taesar-model", daemon=True)
        # What resolves tickets, in order; None ends the thread, which alone resolves any.
        self._answers: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._answering = threading.Thread(target=self._give_answers, name="taesar-answers", daemon=True)

    @property
    def num_queued(self) -> int:
        """Rows admitted and not yet computed."""
        return self._num_uncomputed

    @property
    def death(self) -> BaseException | None:
        """What ended the thread before it was closed; None while it lives."""
        return self._death

    def start(self) -> None:
        """Start the threads; once."""
        self._thread.start()
        self._answering.start()

    async def submit(self, key: KeyT, rows: Sequence[RowT], lengths: Sequence[int]) -> list[ResultT]:
        """
        Results of *rows*, in order.

        Cancelling the wait withdraws the rows that have not been started.

        Args:
            key: rows of different keys never share a batch.
            rows: at least one.
            lengths: the length that each row is computed at, padding included.

        Raises:
            QueueFullError: no room for all of them; nothing was admitted.
            ShuttingDownError: ``close`` was called.
            ModelThreadDiedError: the thread has ended, before or while the rows waited.
            Exception: whatever ``process`` raised on one of their batches.
        """
        return await asyncio.wrap_future(self._admit(key, rows, lengths))

    async def close(self, *, timeout_seconds: float | None = None) -> None:
        """Refuse new work, finish what was admitted, end the threads; after *timeout_seconds* leave them to it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._join, timeout_seconds)

    def _join(self, timeout_seconds: float | None) -> None:
        self._thread.join(timeout_seconds)
        if not self._thread.is_alive():  # else its answers are still to come
            self._answering.join(timeout_seconds)

    def _admit(self, key: KeyT, rows: Sequence[RowT], lengths: Sequence[int]) -> Future[list[ResultT]]:
        assert len(rows) == len(lengths) > 0
        is_short = sum(lengths) <= SHORT_SHARE * self._config.max_batch_positions
        ticket: _Ticket[ResultT] = _Ticket(len(rows), is_short=is_short)
        with self._changed:
            if self._death is not None:
                raise ModelThreadDiedError(f"the model's thread ended: {self._death!r}")
            if self._closing:
                raise ShuttingDownError("the service is shutting down")
            if self._num_uncomputed + len(rows) > self._config.max_queued_rows:
                raise QueueFullError(
                    waiting=self._num_uncomputed,
                    capacity=self._config.max_queued_rows,
                    retry_after_seconds=self._config.retry_after_seconds,
                )
            now = self._clock()
            if is_short:
                self._short_came = now
            pairs = enumerate(zip(rows, lengths, strict=True))
            self._waiting.extend(
                QueuedRow(ticket, index, key, row, length, now, self._busy) for index, (row, length) in pairs
            )
            self._num_uncomputed += len(rows)
            self._changed.notify_all()
        return ticket.future

    def _work(self) -> None:
        window: list[QueuedRow[KeyT, RowT, ResultT]] = []
        try:
            while window := self._take_window():
                short = plan_batches([row for row in window if row.ticket.is_short], self._config.max_batch_positions)
                long = plan_batches([row for row in window if not row.ticket.is_short], self._long_positions())
                for number, batch in enumerate(short, start=1):
                    self._run(batch, last=number == len(short) and not long)
                for number, batch in enumerate(long, start=1):
                    if number > 1:
                        passing = self._take_short()
                        window += passing
                        for passed in plan_batches(passing, self._config.max_batch_positions):
                            self._run(passed, last=False)
                    self._run(batch, last=number == len(long))
        except BaseException as error:
            # Not re-raised: death is reported by every answer and by readiness, and a traceback of a thread that
            # nobody joins would only reach standard error
            self._die(error, window)
        self._answers.put(None)

    def _give_answers(self) -> None:
        while (answer := self._answers.get()) is not None:
            answer()

    def _take_window(self) -> list[QueuedRow[KeyT, RowT, ResultT]]:
        """The next rows, as soon as point 2 of the module's list allows; empty when closed and drained."""
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return []
                self._changed.wait()
            if self._waiting[0].came_while_busy:
                deadline = self._waiting[0].arrived + self._config.window_seconds
                while not self._closing and not self._fills_a_batch():
                    remaining = deadline - self._clock()
                    if remaining <= 0:
                        break
                    self._changed.wait(remaining)
            window = fair_window(self._waiting, WINDOW_BATCHES * self._config.max_batch_positions)
            taken = set(window)
            self._waiting = deque(row for row in self._waiting if row not in taken)
            self._busy = True
            return window

    def _take_short(self) -> list[QueuedRow[KeyT, RowT, ResultT]]:
        """The rows of short requests that came meanwhile, as many as one call holds."""
        with self._changed:
            found: list[QueuedRow[KeyT, RowT, ResultT]] = []
            positions = 0
            for row in self._waiting:
                if row.ticket.is_short and positions < self._config.max_batch_positions:
                    found.append(row)
                    positions += row.length
            if found:
                taken = set(found)
                self._waiting = deque(row for row in self._waiting if row not in taken)
            return found

    def _long_positions(self) -> int:
        """The cap of a call of long requests."""
        share = LONG_SHARE if self._clock() < self._short_came + SHORT_MEMORY_SECONDS else 1.0
        return int(share * self._config.max_batch_positions)

    def _fills_a_batch(self) -> bool:
        return sum(row.length for row in self._waiting) >= self._config.max_batch_positions

    def _run(self, batch: Sequence[QueuedRow[KeyT, RowT, ResultT]], *, last: bool) -> None:
        wanted = [row for row in batch if row.ticket.wanted]
        if not wanted:
            self._settle(len(batch), last=last)
            return
        started = self._clock()
        try:
            results = self._process(wanted[0].key, [row.value for row in wanted])
            assert len(results) == len(wanted), "process must return one result per row"
        except Exception as error:
            self._settle(len(batch), last=last)
            self._answers.put(partial(_fail, {row.ticket for row in wanted}, error))
            return
        self._on_batch(len(wanted), self._clock() - started)
        self._settle(len(batch), last=last)
        self._answers.put(partial(_answer, wanted, results))

    def _settle(self, num_rows: int, *, last: bool) -> None:
        """Before answers are given: a client that comes back with its answer finds its place free and a free thread."""
        with self._changed:
            self._num_uncomputed -= num_rows
            self._busy = not last

    def _die(self, error: BaseException, window: Iterable[QueuedRow[KeyT, RowT, ResultT]]) -> None:
        with self._changed:
            self._death = error
            lost = {row.ticket for row in (*window, *self._waiting)}
            self._num_uncomputed = 0
        death = ModelThreadDiedError(f"the model's thread ended: {error!r}")
        death.__cause__ = error
        self._answers.put(partial(_fail, lost, death))


def _answer(batch: Sequence[QueuedRow[KeyT, RowT, ResultT]], results: Sequence[ResultT]) -> None:
    for row, result in zip(batch, results, strict=True):
        if row.ticket.put(row.index, result):
            row.ticket.succeed()


def _fail(tickets: Iterable[_Ticket[ResultT]], error: BaseException) -> None:
    for ticket in tickets:
        ticket.fail(error)


def fair_window(
    waiting: Iterable[QueuedRow[KeyT, RowT, ResultT]], max_positions: int
) -> list[QueuedRow[KeyT, RowT, ResultT]]:
    """The first row of each request, then the second of each, and so on, until their lengths reach *max_positions*."""
    by_request: dict[_Ticket[ResultT], deque[QueuedRow[KeyT, RowT, ResultT]]] = {}
    for row in waiting:
        by_request.setdefault(row.ticket, deque()).append(row)
    turns = deque(by_request.values())
    window: list[QueuedRow[KeyT, RowT, ResultT]] = []
    positions = 0
    while turns and positions < max_positions:
        rows = turns.popleft()
        window.append(rows.popleft())
        positions += window[-1].length
        if rows:
            turns.append(rows)
    return window


def plan_batches(
    window: Sequence[QueuedRow[KeyT, RowT, ResultT]], max_positions: int
) -> list[list[QueuedRow[KeyT, RowT, ResultT]]]:
    """
    Cut a window into batches of one key each, none over *max_positions* in all (unless of a single row).

    Keys keep the order of their first row, rows their order inside the key. Rows of unequal length share a batch: what
    each is padded to is the model's affair and depends on that row alone.
    """
    by_key: dict[KeyT, list[QueuedRow[KeyT, RowT, ResultT]]] = {}
    for row in window:
        by_key.setdefault(row.key, []).append(row)
    batches: list[list[QueuedRow[KeyT, RowT, ResultT]]] = []
    for rows in by_key.values():
        batch: list[QueuedRow[KeyT, RowT, ResultT]] = []
        positions = 0
        for row in rows:
            if batch and positions + row.length > max_positions:
                batches.append(batch)
                batch, positions = [], 0
            batch.append(row)
            positions += row.length
        batches.append(batch)
    return batches
