"""
The queue: tasks that carry ids and nothing else, over dramatiq on Redis or inside this process.

SQL knows what is to be done; a task only says where to look. A lost task is found again in SQL, a task delivered
twice finds its work done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import ShutdownNotifications

from app.errors import QueueRefusesError
from app.jobs.retries import backoff
from app.jobs.tasks import Task, TaskKind
from app.runtime.logs import logger

log = logger(__name__)

QUEUE = "jobs"
NAMESPACE = "taesar"
# A killed worker's tasks come back after 15 s; with dramatiq's defaults (60 s, one command in a thousand) it took over
# 200 s. Heartbeats are sent by the consumer's thread, so long chunks do not miss them.
HEARTBEAT_TIMEOUT_MS = 15_000
MAINTENANCE_CHANCE = 1_000_000


class TaskQueue:
    """
    Puts tasks on a broker.

    Args:
        broker: of ``redis_broker`` or ``embedded_broker``.
        on_outage: told of every call that the broker did not answer.
    """

    def __init__(self, broker: dramatiq.Broker, *, on_outage: Callable[[], None] = lambda: None) -> None:
        self.broker = broker
        self._on_outage = on_outage
        broker.declare_queue(QUEUE)

    def put(self, task: Task) -> None:
        """Queue *task*; when the broker is down it is only logged, since what SQL holds will be queued again."""
        args = (task.job_id, task.chunk_index)
        message: dramatiq.Message[Any] = dramatiq.Message(
            queue_name=QUEUE, actor_name=task.step, args=args, kwargs={}, options={}
        )
        try:
            self.broker.enqueue(message)
        except (redis.RedisError, dramatiq.BrokerError) as error:
            self._on_outage()
            log.warning("task_not_queued", task=str(task), reason=f"{type(error).__name__}: {error}")

    def is_empty(self) -> bool:
        """Whether no task waits; False when the broker cannot be asked."""
        if isinstance(self.broker, RedisBroker):
            try:
                return bool(self.broker.client.llen(f"{NAMESPACE}:{QUEUE}") == 0)
            except redis.RedisError:
                self._on_outage()
                return False
        assert isinstance(self.broker, StubBroker)
        return bool(self.broker.queues[QUEUE].empty())

    def ping(self) -> None:
        """Raise redis.RedisError when the broker does not answer."""
        if isinstance(self.broker, RedisBroker):
            self.broker.client.ping()

    def check_entrance(self) -> None:
        """
        Raise where waiting for the broker mends nothing; one that is merely down is waited for.

        Raises:
            QueueRefusesError: it takes neither this user nor this password.
        """
        try:
            self.ping()
        except redis.AuthenticationError as error:
            raise QueueRefusesError("TAESAR_REDIS_URL: Redis refuses this user or password") from error
        except redis.RedisError:
            return


def redis_broker(redis_url: str) -> dramatiq.Broker:
    """A broker that API and workers share; connects when first used."""
    # A connection that goes silent must end in an error, which is retried, not in a thread that waits for ever.
    client = redis.Redis.from_url(redis_url, socket_timeout=15, socket_connect_timeout=5)
    return RedisBroker(  # type: ignore[no-untyped-call]
        client=client,
        middleware=_middleware(),
        namespace=NAMESPACE,
        heartbeat_timeout=HEARTBEAT_TIMEOUT_MS,
        maintenance_chance=MAINTENANCE_CHANCE,
    )


def embedded_broker() -> dramatiq.Broker:
    """A broker inside this process; what it holds is gone with it."""
    return StubBroker(middleware=_middleware())


def declare_actors(broker: dramatiq.Broker, run: Callable[[Task], None]) -> None:
    """Let a worker on *broker* answer every task with *run*; a task whose run raises comes again, later and later."""

    def actor_of(step: TaskKind) -> Callable[[str, int], None]:
        return lambda job_id, chunk_index: run(Task(step, job_id, chunk_index))

    for step in TaskKind:
        # Attempts are counted in SQL, where a killed worker counts too; the broker retries without end.
        dramatiq.Actor(
            actor_of(step), broker=broker, actor_name=step, queue_name=QUEUE, priority=0, options={"max_retries": None}
        )


def _middleware() -> list[dramatiq.Middleware]:
    # None of dramatiq's limits on age or duration: a large job is not a hung one.
    return [ShutdownNotifications(), backoff()]
