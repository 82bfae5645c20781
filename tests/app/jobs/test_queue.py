"""The queue on a real Redis: tasks of killed workers come back soon, and a Redis that is down loses no request."""

import subprocess
import sys
import threading
import time

import dramatiq.worker
import pytest

from app.errors import QueueRefusesError
from app.jobs.queue import HEARTBEAT_TIMEOUT_MS, TaskQueue, declare_actors, redis_broker
from app.jobs.tasks import Task, TaskKind

# Takes tasks and never ends one; says on its output that it has begun.
HANGING_WORKER = """
import sys, time
from dramatiq.worker import Worker
from app.jobs.queue import TaskQueue, declare_actors, redis_broker

def hang(task):
    print("begun", flush=True)
    time.sleep(3600)

queue = TaskQueue(redis_broker(sys.argv[1]))
declare_actors(queue.broker, hang)
Worker(queue.broker, worker_threads=1).start()
time.sleep(3600)
"""


def test_a_killed_workers_task_comes_back_within_twenty_seconds(redis_server):
    """15 s without a heartbeat, and a moment; dramatiq's defaults took over 200 s."""
    queue = TaskQueue(redis_broker(redis_server.url))
    task = Task(TaskKind.CHUNK, "a" * 32, 7)
    queue.put(task)
    with subprocess.Popen([sys.executable, "-c", HANGING_WORKER, redis_server.url], stdout=subprocess.PIPE) as hanging:
        assert hanging.stdout.readline() == b"begun\n"
        was_empty = queue.is_empty()
        hanging.kill()
    killed = time.monotonic()
    found, arrived = [], threading.Event()

    def run(delivered):
        found.append((delivered, time.monotonic() - killed))
        arrived.set()

    declare_actors(queue.broker, run)
    worker = dramatiq.worker.Worker(queue.broker, worker_threads=1)
    worker.start()
    arrived.wait(60)
    worker.stop()
    queue.broker.close()

    [(delivered, seconds)] = found
    assert was_empty
    assert delivered == task
    assert seconds < HEARTBEAT_TIMEOUT_MS / 1000 + 5, f"redelivered after {seconds:.1f} s"


def test_a_password_that_redis_refuses_is_told_and_a_redis_that_is_down_is_waited_for(redis_server):
    wrong = redis_server.url.replace("//", "//stranger:hunter2@")
    with pytest.raises(QueueRefusesError) as refused:
        TaskQueue(redis_broker(wrong)).check_entrance()

    assert str(refused.value) == "TAESAR_REDIS_URL: Redis refuses this user or password"
    TaskQueue(redis_broker(redis_server.url)).check_entrance()
    TaskQueue(redis_broker("redis://127.0.0.1:1/0")).check_entrance()


def test_a_queue_without_redis_neither_raises_nor_claims_to_be_empty(redis_server):
    queue = TaskQueue(redis_broker("redis://127.0.0.1:1/0"))
    queue.put(Task(TaskKind.CUT, "a" * 32))

    assert not queue.is_empty()
