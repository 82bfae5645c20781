"""The batcher, with plain functions in the model's place: it knows nothing of models."""

import asyncio
import contextlib
import threading
import time

import pytest

from app.errors import ModelThreadDiedError, QueueFullError, ShuttingDownError
from app.serving.batching import Batcher, BatchingConfig, QueuedRow, fair_window, plan_batches


class Recorder:
    """Doubles numbers, records every call, and stands still at calls while the gate is shut."""

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __call__(self, key, rows):
        self.calls.append((key, list(rows)))
        self.entered.set()
        assert self.gate.wait(10)
        return [2 * row for row in rows]


def bounds(**changes):
    defaults = {
        "max_batch_positions": 1000,
        "window_seconds": 0.0,
        "max_queued_rows": 100,
        "retry_after_seconds": 7,
    }
    return BatchingConfig(**(defaults | changes))


@contextlib.asynccontextmanager
async def running(process, *, on_batch=lambda rows, seconds: None, **changes):
    batcher = Batcher(process, bounds(**changes), on_batch=on_batch)
    batcher.start()
    try:
        yield batcher
    finally:
        await batcher.close()


@contextlib.asynccontextmanager
async def busy(process, **changes):
    """A batcher whose thread stands in a first call, of a long request, until the gate opens."""
    process.gate.clear()
    length = bounds(**changes).max_batch_positions
    async with running(process, **changes) as batcher:
        first = asyncio.create_task(batcher.submit("first", [0], [length]))
        await asyncio.to_thread(process.entered.wait, 10)
        try:
            yield batcher
        finally:
            process.gate.set()
            await asyncio.gather(first, return_exceptions=True)


async def queued(batcher, count):
    """Wait until *count* rows are admitted and unanswered."""
    async with asyncio.timeout(10):
        while batcher.num_queued != count:
            await asyncio.sleep(0.001)


def test_results_come_back_in_the_order_of_the_rows():
    async def scenario():
        async with running(Recorder(), max_batch_positions=10) as batcher:
            return await batcher.submit("a", list(range(20)), [9, 1, 5, 3] * 5)

    assert asyncio.run(scenario()) == [2 * n for n in range(20)]


def test_an_idle_thread_dispatches_at_once_however_long_the_window():
    async def scenario():
        async with running(Recorder(), window_seconds=60) as batcher:
            started = time.monotonic()
            await batcher.submit("a", [1], [1])
            await batcher.submit("a", [2], [1])
            return time.monotonic() - started

    assert asyncio.run(scenario()) < 5


@pytest.mark.parametrize("lengths", [[1], [1000], [1000] * 3])
def test_a_thread_is_idle_again_after_its_last_call_be_it_of_a_short_or_a_long_request(lengths):
    async def scenario():
        async with running(Recorder(), window_seconds=60) as batcher:
            await batcher.submit("a", list(range(len(lengths))), lengths)
            async with asyncio.timeout(10):
                return await batcher.submit("a", [1], [1])

    assert asyncio.run(scenario()) == [2]


def test_rows_that_wait_for_a_busy_thread_share_its_next_call():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder) as batcher:
            waiting = [asyncio.create_task(batcher.submit("a", [n], [1])) for n in (1, 2, 3)]
            await queued(batcher, 4)
            recorder.gate.set()
            return await asyncio.gather(*waiting)

    assert asyncio.run(scenario()) == [[2], [4], [6]]
    assert recorder.calls == [("first", [0]), ("a", [1, 2, 3])]


def test_a_busy_thread_waits_out_the_window_for_company():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder, window_seconds=0.5) as batcher:
            early = asyncio.create_task(batcher.submit("a", [1], [1]))
            await queued(batcher, 2)
            recorder.gate.set()
            await queued(batcher, 1)  # the first call is over; the thread now waits for company
            late = asyncio.create_task(batcher.submit("a", [2], [1]))
            await asyncio.gather(early, late)

    asyncio.run(scenario())

    assert recorder.calls[1:] == [("a", [1, 2])]


def test_a_full_batch_ends_the_window_early():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder, window_seconds=60, max_batch_positions=4) as batcher:
            waiting = [asyncio.create_task(batcher.submit("a", [n], [2])) for n in (1, 2)]
            await queued(batcher, 3)
            recorder.gate.set()
            async with asyncio.timeout(10):
                await asyncio.gather(*waiting)

    asyncio.run(scenario())


def test_rows_of_different_keys_never_share_a_call():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder) as batcher:
            waiting = [asyncio.create_task(batcher.submit(key, [n], [1])) for n, key in enumerate("abab")]
            await queued(batcher, 5)
            recorder.gate.set()
            await asyncio.gather(*waiting)

    asyncio.run(scenario())

    assert recorder.calls[1:] == [("a", [0, 2]), ("b", [1, 3])]


def test_a_window_is_cut_where_its_lengths_would_pass_the_cap():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder, max_batch_positions=12) as batcher:
            waiting = asyncio.create_task(batcher.submit("a", [6, 2, 4, 3, 99], [6, 2, 4, 3, 99]))
            await queued(batcher, 6)
            recorder.gate.set()
            await waiting

    asyncio.run(scenario())

    # 6 + 2 + 4 = 12 fit; 99 is over the cap and runs alone
    assert [rows for _, rows in recorder.calls[1:]] == [[6, 2, 4], [3], [99]]


def test_a_small_request_does_not_wait_for_the_whole_of_a_large_one():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder, max_batch_positions=2) as batcher:
            large = asyncio.create_task(batcher.submit("a", list(range(1, 41)), [1] * 40))
            await queued(batcher, 41)
            small = asyncio.create_task(batcher.submit("a", [99], [1]))
            await queued(batcher, 42)
            recorder.gate.set()
            return await small, await large

    small, large = asyncio.run(scenario())

    assert small == [198]
    assert large == [2 * n for n in range(1, 41)]
    assert next(n for n, (_, rows) in enumerate(recorder.calls) if 99 in rows) <= 4


class Stepping(Recorder):
    """A recorder that waits to be let on before every call but the first."""

    def __init__(self):
        super().__init__()
        self.may_go = threading.Semaphore(0)

    def __call__(self, key, rows):
        if self.calls:
            assert self.may_go.acquire(timeout=10)
        return super().__call__(key, rows)


def test_short_requests_pass_a_long_one_between_two_of_its_calls_and_never_stop_it():
    """However many come, one call of theirs is made, then one of the long request's."""
    process = Stepping()

    async def scenario():
        async with busy(process, max_batch_positions=40) as batcher:
            long = asyncio.create_task(batcher.submit("a", list(range(1, 41)), [10] * 40))
            await queued(batcher, 41)
            process.gate.set()
            await queued(batcher, 40)  # the long request's first call is about to be made
            short = [asyncio.create_task(batcher.submit("a", [100 + n], [4])) for n in range(25)]
            await queued(batcher, 65)
            process.may_go.release(100)
            return await asyncio.gather(long, *short)

    long, *short = asyncio.run(scenario())

    assert long == [2 * n for n in range(1, 41)]
    assert short == [[2 * (100 + n)] for n in range(25)]
    calls = [rows for _, rows in process.calls[1:7]]
    assert calls[0] == [1, 2, 3, 4]
    assert calls[1] == list(range(100, 110))
    assert calls[2] == [5, 6, 7, 8]
    assert calls[3] == list(range(110, 120))


@pytest.mark.parametrize("when", ["before the long one's call", "between two of its calls"])
def test_a_thread_is_busy_until_the_last_call_of_a_long_request_although_a_short_one_was_answered(when):
    """So whoever comes during that call waits for company."""
    process, first = Stepping(), when.startswith("before")

    async def scenario():
        async with busy(process, max_batch_positions=40, window_seconds=1.0) as batcher:
            rows = [1] if first else [1, 2]
            asked = [asyncio.create_task(batcher.submit("a", rows, [40] * len(rows)))]
            await queued(batcher, 1 + len(rows))
            if not first:
                process.gate.set()
                await queued(batcher, 2)
            asked.append(asyncio.create_task(batcher.submit("a", [50], [4])))
            await queued(batcher, 3)
            process.gate.set()
            process.may_go.release(1 if first else 2)
            await queued(batcher, 1)  # the long request's last call is about to be made
            asked.append(asyncio.create_task(batcher.submit("a", [60], [4])))
            await queued(batcher, 2)
            process.may_go.release()
            await queued(batcher, 1)
            asked.append(asyncio.create_task(batcher.submit("a", [61], [4])))
            process.may_go.release(10)
            await asyncio.gather(*asked)

    asyncio.run(scenario())

    assert process.calls[-1][1] == [60, 61]


def test_long_requests_are_cut_smaller_while_short_ones_come():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder, max_batch_positions=40) as batcher:
            long = asyncio.create_task(batcher.submit("a", list(range(1, 9)), [10] * 8))
            await queued(batcher, 9)
            short = asyncio.create_task(batcher.submit("a", [99], [5]))
            await queued(batcher, 10)
            recorder.gate.set()
            await asyncio.gather(long, short)

    asyncio.run(scenario())

    assert [rows for _, rows in recorder.calls[1:]] == [[99], *([n] for n in range(1, 9))]


def row_of(request, index, *, key="a", length=1):
    """A queued row; a request is known by any object of its own."""
    return QueuedRow(request, index, key, index, length, 0.0, False)


def names(rows):
    return [(row.ticket, row.index) for row in rows]


def test_a_window_takes_one_row_of_each_request_in_turn_in_the_order_they_came():
    """Whoever came first has the first row, each request's rows keep their order, and the last ones wait."""
    waiting = [row_of(request, index) for request, count in (("p", 3), ("q", 1), ("r", 2)) for index in range(count)]

    assert names(fair_window(waiting, 100)) == [("p", 0), ("q", 0), ("r", 0), ("p", 1), ("r", 1), ("p", 2)]
    assert names(fair_window(waiting, 4)) == [("p", 0), ("q", 0), ("r", 0), ("p", 1)]


def test_a_window_ends_with_the_row_that_reaches_its_positions():
    waiting = [row_of("p", index, length=5) for index in range(4)]

    assert [len(fair_window(waiting, positions)) for positions in (1, 5, 6, 10, 11, 100)] == [1, 1, 2, 2, 3, 4]


def test_batches_keep_the_order_of_keys_and_of_rows():
    """Keys by their first row; a batch is full at exactly the cap."""
    window = [row_of("p", index, key=key, length=2) for index, key in enumerate("babab")]

    assert [names(batch) for batch in plan_batches(window, 4)] == [
        [("p", 0), ("p", 2)],
        [("p", 4)],
        [("p", 1), ("p", 3)],
    ]


def test_a_row_over_the_cap_has_a_batch_of_its_own_and_no_batch_is_empty():
    window = [row_of("p", index, length=length) for index, length in enumerate((99, 3, 99))]

    assert [names(batch) for batch in plan_batches(window, 12)] == [[("p", 0)], [("p", 1)], [("p", 2)]]


def test_requests_are_answered_in_the_order_in_which_they_came():
    """With one row a call, requests of one row each leave in the order of their arrival."""
    recorder, order = Recorder(), []

    async def client(batcher, number):
        await batcher.submit("a", [number], [1])
        order.append(number)

    async def scenario():
        async with busy(recorder, max_batch_positions=1) as batcher:
            clients = []
            for number in range(1, 8):
                clients.append(asyncio.create_task(client(batcher, number)))
                await queued(batcher, 1 + number)
            recorder.gate.set()
            await asyncio.gather(*clients)

    asyncio.run(scenario())

    assert [rows for _, rows in recorder.calls[1:]] == [[number] for number in range(1, 8)]
    assert order == list(range(1, 8))


def test_no_planned_batch_of_several_rows_is_over_the_cap():
    window = [row_of(f"request {n}", n, key=n % 3, length=1 + (n * 7) % 40) for n in range(200)]
    batches = plan_batches(window, 100)

    assert sorted(row.index for batch in batches for row in batch) == list(range(200))
    assert all(len({row.key for row in batch}) == 1 for batch in batches)
    assert all(len(batch) == 1 or sum(row.length for row in batch) <= 100 for batch in batches)


def test_a_request_that_does_not_fit_is_refused_whole_and_told_when_to_return():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder, max_queued_rows=3) as batcher:
            with pytest.raises(QueueFullError) as refused:
                await batcher.submit("a", [1, 2, 3], [1, 1, 1])
            fits = asyncio.create_task(batcher.submit("a", [4, 5], [1, 1]))
            await queued(batcher, 3)
            recorder.gate.set()
            return refused.value, await fits

    error, answer = asyncio.run(scenario())

    assert error.retry_after_seconds == 7
    assert answer == [8, 10]
    assert recorder.calls[1:] == [("a", [4, 5])]


def test_room_is_free_again_when_a_client_has_its_answer():
    async def scenario():
        async with running(Recorder(), max_queued_rows=1) as batcher:
            for n in range(200):
                assert await batcher.submit("a", [n], [1]) == [2 * n]

    asyncio.run(scenario())


def test_rows_whose_client_has_left_are_not_computed():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder) as batcher:
            leaving = asyncio.create_task(batcher.submit("a", [1, 2], [1, 1]))
            staying = asyncio.create_task(batcher.submit("a", [3], [1]))
            await queued(batcher, 4)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            recorder.gate.set()
            answer = await staying
            return answer, leaving.cancelled(), batcher.num_queued

    assert asyncio.run(scenario()) == ([6], True, 0)
    assert recorder.calls[1:] == [("a", [3])]


def test_a_client_that_leaves_during_its_batch_harms_nobody():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder) as batcher:
            await asyncio.sleep(0)
            first = next(task for task in asyncio.all_tasks() if task is not asyncio.current_task())
            first.cancel()
            staying = asyncio.create_task(batcher.submit("a", [3], [1]))
            await queued(batcher, 2)
            recorder.gate.set()
            return await staying

    assert asyncio.run(scenario()) == [6]


def test_a_batch_that_raises_fails_every_waiter_in_it_and_nobody_else():
    recorder = Recorder()

    def process(key, rows):
        if key == "bad":
            raise ValueError("no")
        return recorder(key, rows)

    async def scenario():
        recorder.gate.clear()
        async with running(process) as batcher:
            first = asyncio.create_task(batcher.submit("first", [0], [1]))
            await asyncio.to_thread(recorder.entered.wait, 10)
            bad = [asyncio.create_task(batcher.submit("bad", [n], [1])) for n in (1, 2)]
            good = asyncio.create_task(batcher.submit("good", [3], [1]))
            await queued(batcher, 4)
            recorder.gate.set()
            outcomes = await asyncio.gather(first, *bad, good, return_exceptions=True)
            after = await batcher.submit("good", [4], [1])
            return outcomes, after, batcher.num_queued, batcher.death

    (first, bad, worse, good), after, left, death = asyncio.run(scenario())

    assert (first, good, after) == ([0], [6], [8])
    assert isinstance(bad, ValueError)
    assert isinstance(worse, ValueError)
    assert (left, death) == (0, None)


def test_a_request_spread_over_batches_fails_when_one_of_them_does():
    def process(key, rows):
        if 3 in rows:
            raise ValueError("three")
        return rows

    async def scenario():
        async with running(process, max_batch_positions=1) as batcher:
            with pytest.raises(ValueError, match="three"):
                await batcher.submit("a", [1, 2, 3, 4], [1, 1, 1, 1])
            return await batcher.submit("a", [5], [1])

    assert asyncio.run(scenario()) == [5]


def test_when_the_thread_dies_every_waiter_and_every_later_caller_is_told():
    recorder, error = Recorder(), SystemExit("over")

    def process(key, rows):
        recorder(key, rows)
        raise error

    async def scenario():
        recorder.gate.clear()
        async with running(process) as batcher:
            running_now = asyncio.create_task(batcher.submit("a", [1], [1]))
            await asyncio.to_thread(recorder.entered.wait, 10)
            waiting = asyncio.create_task(batcher.submit("b", [2, 3], [1, 1]))
            await queued(batcher, 3)
            recorder.gate.set()
            outcomes = await asyncio.gather(running_now, waiting, return_exceptions=True)
            with pytest.raises(ModelThreadDiedError):
                await batcher.submit("a", [4], [1])
            return outcomes, batcher.death, batcher.num_queued

    outcomes, death, left = asyncio.run(scenario())

    assert [type(outcome) for outcome in outcomes] == [ModelThreadDiedError, ModelThreadDiedError]
    assert death is error
    assert left == 0


def test_when_the_thread_dies_between_two_batches_those_answered_keep_their_answers():
    """They come from one window; the others are told, whatever was answered before."""
    recorder = Recorder()

    def process(key, rows):
        if key == "deadly":
            raise SystemExit
        return recorder(key, rows)

    async def scenario():
        recorder.gate.clear()
        async with running(process) as batcher:
            first = asyncio.create_task(batcher.submit("first", [0], [1]))
            await asyncio.to_thread(recorder.entered.wait, 10)
            answered = [asyncio.create_task(batcher.submit("good", [n], [1])) for n in range(20)]
            await queued(batcher, 21)
            lost = [asyncio.create_task(batcher.submit("deadly", [n], [1])) for n in range(3)]
            await queued(batcher, 24)
            recorder.gate.set()
            async with asyncio.timeout(10):
                return await asyncio.gather(first, *answered, *lost, return_exceptions=True)

    _, *outcomes = asyncio.run(scenario())

    assert outcomes[:20] == [[2 * n] for n in range(20)]
    assert [type(outcome) for outcome in outcomes[20:]] == [ModelThreadDiedError] * 3


def test_a_wrong_number_of_results_fails_the_batch_instead_of_mixing_answers_up():
    async def scenario():
        async with running(lambda key, rows: rows[:-1]) as batcher:
            with pytest.raises(AssertionError, match="one result per row"):
                await batcher.submit("a", [1, 2], [1, 1])

    asyncio.run(scenario())


def test_closing_finishes_what_was_admitted_and_refuses_the_rest():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder, window_seconds=60) as batcher:
            admitted = asyncio.create_task(batcher.submit("a", [1, 2], [1, 1]))
            await queued(batcher, 3)
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0)
            with pytest.raises(ShuttingDownError):
                await batcher.submit("a", [3], [1])
            recorder.gate.set()
            await closing
            calls = list(recorder.calls)  # all are made when it is closed
            return calls, await admitted

    calls, answer = asyncio.run(scenario())

    assert calls[1:] == [("a", [1, 2])]
    assert answer == [2, 4]


def test_closing_returns_when_both_threads_have_ended():
    """A call under way, and the answers of very many requests, which take longer than the call."""
    recorder = Recorder()

    async def scenario():
        async with busy(recorder, max_queued_rows=4001, max_batch_positions=10_000) as batcher:
            waiting = [asyncio.create_task(batcher.submit("a", [n], [1])) for n in range(4000)]
            await queued(batcher, 4001)
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0.05)
            waits = not closing.done()
            recorder.gate.set()
            await closing
            left = [thread.name for thread in threading.enumerate() if thread.name.startswith("taesar-")]
            return waits, left, await asyncio.gather(*waiting)

    waits, left, answers = asyncio.run(scenario())

    assert (waits, left) == (True, [])
    assert answers == [[2 * n] for n in range(4000)]


def test_closing_with_a_time_limit_leaves_a_call_that_lasts_longer_to_itself():
    recorder = Recorder()

    async def scenario():
        async with busy(recorder) as batcher:
            await batcher.close(timeout_seconds=0.05)
            return recorder.calls.copy(), batcher.num_queued

    assert asyncio.run(scenario()) == ([("first", [0])], 1)


def test_a_batcher_that_was_never_started_can_be_closed():
    async def scenario():
        batcher = Batcher(Recorder(), bounds(), on_batch=lambda rows, seconds: None)
        await batcher.close()
        with pytest.raises(ShuttingDownError):
            await batcher.submit("a", [1], [1])

    asyncio.run(scenario())


def test_every_call_is_observed_with_its_rows():
    seen = []

    async def scenario():
        async with running(
            Recorder(), on_batch=lambda rows, seconds: seen.append((rows, seconds >= 0)), max_batch_positions=2
        ) as batcher:
            await batcher.submit("a", [1, 2, 3], [1, 1, 1])

    asyncio.run(scenario())

    assert seen == [(2, True), (1, True)]
