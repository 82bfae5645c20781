"""
Guards the server's connections: who sends or reads too slowly is cut off, and when they are too many the slowest goes.

uvicorn waits for ever for a request that has begun and for a client that does not read, and accepts connections until
the process has no descriptor left. Here one look a second at every connection decides, so a request costs nothing more.
"""

from __future__ import annotations

import asyncio
import collections
import resource
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from app.runtime.logs import logger
from app.settings import Settings

log = logger(__name__)

# Descriptors left to everything but connections: databases, the files of jobs, the pipes of processes
RESERVED_DESCRIPTORS = 384
# Connections that the event loop takes in one go, before the guard sees the first of them; a part of the reserve
BACKLOG = 128
FEWEST_CONNECTIONS = 16
# So much of a refused body is still taken and thrown away, for its client to read the answer
LINGER_BYTES = 32 * 1024 * 1024
# So much is taken from a connection at a time
READ_BYTES = 64 * 1024
# Chunks that a body may come in, however small, and bytes of it that allow for one more: chunks of a byte would cost
# the event loop, and so everybody, a second for each megabyte. Lines of a log that are sent a chunk each are longer
FREE_CHUNKS, BYTES_A_CHUNK = 1024, 32
# A process may open so many files where the system lets it choose
MOST_DESCRIPTORS = 65_536
# What is closed under attack is told once in so many seconds, as a number
REPORT_SECONDS = 10.0


class Phase(IntEnum):
    """What a connection waits for."""

    HEAD = 0  # the client, to send a request line and headers
    BODY = 1  # the client, to send the rest of a body
    ANSWER = 2  # us, or the client to read
    IDLE = 3  # nothing: its request was answered, and no other has begun; uvicorn's keep-alive ends it


@dataclass(frozen=True)
class ConnectionLimits:
    """
    Bounds on connections.

    Args:
        max_connections: open at once; one more and the slowest is closed.
        span_seconds: a request's headers must come in such a span; a body, and an answer that is read, must get on in
            every one.
        min_bytes_per_second: how far it must get on.
    """

    max_connections: int
    span_seconds: float
    min_bytes_per_second: int

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """The operator's choice, as far as the system's descriptors go; raises the soft limit of these first."""
        return cls(
            max_connections=min(settings.max_connections, max(FEWEST_CONNECTIONS, spare_descriptors())),
            span_seconds=settings.slow_client_seconds,
            min_bytes_per_second=settings.min_bytes_per_second,
        )


def spare_descriptors() -> int:
    """How many descriptors connections may have, once the soft limit has been raised as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = MOST_DESCRIPTORS if hard == unlimited else min(hard, MOST_DESCRIPTORS)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return MOST_DESCRIPTORS if soft == unlimited else soft - RESERVED_DESCRIPTORS


class ConnectionGuard:
    """
    Knows every connection of a server and closes those that hold others up. Used on the event loop only.

    Args:
        limits: when that is.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[GuardedProtocol, None] = {}  # a set that keeps the order of arrival
        self._per_peer: collections.Counter[str] = collections.Counter()
        self._closed: collections.Counter[str] = collections.Counter()
        self._reported_at = -REPORT_SECONDS

    def __len__(self) -> int:
        return len(self._open)

    def new_connection(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> GuardedProtocol:
        """What uvicorn's option ``http`` makes connections with."""
        return GuardedProtocol(config, server_state, app_state, _loop, guard=self)

    def admit(self, connection: GuardedProtocol) -> None:
        """Take a new connection in; when there is no room, the slowest of all makes it."""
        if len(self._open) >= self.limits.max_connections:
            slowest = self._slowest()
            if slowest is None:  # all are being answered
                self._count("refused")
                connection.cut()
                return
            self._count("made_room")
            slowest.give_up()
        self._open[connection] = None
        self._per_peer[connection.peer] += 1

    def forget(self, connection: GuardedProtocol) -> None:
        """A connection has been closed, by whomever."""
        if connection in self._open:
            del self._open[connection]
            self._per_peer[connection.peer] -= 1
            if not self._per_peer[connection.peer]:
                del self._per_peer[connection.peer]

    def look(self, now: float) -> None:
        """Close the connections whose time is over. Called once a second."""
        for connection in list(self._open):
            reason = connection.overdue(now, self.limits)
            if reason is not None:
                self._count(reason)
                connection.give_up()
        if self._closed and now >= self._reported_at + REPORT_SECONDS:
            log.warning("connections_closed", open=len(self._open), **self._closed)
            self._closed.clear()
            self._reported_at = now

    def _count(self, reason: str) -> None:
        self._closed[reason] += 1

    def _slowest(self) -> GuardedProtocol | None:
        """Whom others wait for least: of the clients that have brought nothing, of whom has most, the oldest."""
        unfinished = (connection for connection in self._open if connection.phase is not Phase.ANSWER)
        return min(unfinished, key=self._patience_for, default=None)

    def _patience_for(self, connection: GuardedProtocol) -> tuple[bool, int, float]:
        return connection.has_answered, -self._per_peer[connection.peer], connection.since


class CountedChunks(h11.Connection):
    """HTTP as it comes, refused when a body comes in chunks of a few bytes."""

    _chunks = _bytes = 0

    def next_event(self) -> Any:
        """See ``h11.Connection``."""
        event = super().next_event()
        if type(event) is h11.Request:
            self._chunks = self._bytes = 0
        elif type(event) is h11.Data:
            self._bytes += len(event.data)
            self._chunks += event.chunk_start
            if self._chunks > FREE_CHUNKS + self._bytes // BYTES_A_CHUNK:
                raise h11.RemoteProtocolError("the body comes in chunks of a few bytes")
        return event


class LingeringTransport:
    """
    A connection that is not closed on a client who is still sending: what it sends is thrown away until it has ended.

    Closed at once, the system would answer the rest with a reset, and the client lose the answer that says why.

    Args:
        transport: the real one.
        is_sending: whether the rest of a body is to come.
    """

    def __init__(self, transport: asyncio.Transport, is_sending: Callable[[], bool]) -> None:
        self._transport = transport
        self._is_sending = is_sending
        self.lingers = False
        # Asked for with every answer, so not by way of __getattr__
        self.write = transport.write
        self.get_write_buffer_size = transport.get_write_buffer_size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether nothing more will be written."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """Write what is to be written, then close, now or when the client has ended."""
        if self.is_closing():
            return
        if not self._is_sending():
            self._transport.close()
            return
        self.lingers = True
        self._transport.write_eof()
        self._transport.resume_reading()

    def close_now(self) -> None:
        """Write what is to be written, then close."""
        self._transport.close()


class GuardedProtocol(H11Protocol):
    """uvicorn's connection, which says how it gets on and can be cut off in each of its states."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        guard: ConnectionGuard,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = CountedChunks(h11.SERVER)
        self._guard = guard
        self._received = 0
        self._drained = 0
        self.peer = ""
        self._num_answered = 0
        self._heard_until = LINGER_BYTES
        self.since = self.loop.time()
        self._seen: tuple[Phase, int] = (Phase.HEAD, 0)
        self._mark = 0

    @property
    def has_answered(self) -> bool:
        """Whether a request has come over it that was answered."""
        return self._num_answered > 0

    @property
    def phase(self) -> Phase:
        """What the connection waits for."""
        if self.transport.is_closing():
            return Phase.ANSWER
        if self.cycle is None or self.cycle.response_complete:
            if self._unread():
                return Phase.ANSWER
            return Phase.IDLE if self._rests() else Phase.HEAD
        return Phase.BODY if self.cycle.more_body else Phase.ANSWER

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # of asyncio's own loop
            transport.max_size = READ_BYTES
        self._lingering = LingeringTransport(transport, lambda: self.conn.their_state is h11.SEND_BODY)
        self.transport = self._lingering  # type: ignore[assignment]
        self.peer = self.client[0] if self.client else ""
        self._guard.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._guard.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._received += len(data)
        if not self._lingering.lingers:
            super().data_received(data)
        elif self._received > self._heard_until:
            self.cut()

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self._drained += 1
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """See ``H11Protocol``. What comes after it is no HTTP: no other answer of the application's may follow."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:  # an answer has begun
            self.cut()

    def on_response_complete(self) -> None:
        """See ``H11Protocol``."""
        self._num_answered += 1
        self._heard_until = self._received + LINGER_BYTES
        super().on_response_complete()

    def overdue(self, now: float, limits: ConnectionLimits) -> str | None:
        """Why the connection's time is over, or None. Called once a second."""
        phase = self.phase
        seen = (phase, self._num_answered)
        if seen != self._seen:
            self._seen = seen
            self._begin_span(now)
            return None
        if phase is Phase.HEAD:
            return "slow_head" if now - self.since > limits.span_seconds else None
        if phase is Phase.IDLE:
            return None
        if not self._waits_for_client(phase):
            self._begin_span(now)
            return None
        if now - self.since < limits.span_seconds:
            return None
        moved = self._progress(phase) - self._mark
        self._begin_span(now)
        if moved >= limits.min_bytes_per_second * limits.span_seconds:
            return None
        return "slow_body" if phase is Phase.BODY else "slow_reader"

    def give_up(self) -> None:
        """Close the connection. Who sent half a request gets no answer, as from other servers."""
        phase = self.phase
        if phase is Phase.ANSWER:
            self.cut()
            return
        if self.cycle is not None and phase is Phase.BODY:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._lingering.close_now()

    def cut(self) -> None:
        """Close the connection at once, whatever it still holds."""
        self.transport.abort()

    def _rests(self) -> bool:
        """Whether a request was answered and read to its end, and nothing of another has come."""
        return self.has_answered and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _waits_for_client(self, phase: Phase) -> bool:
        if phase is Phase.BODY:
            return not self.flow.read_paused
        return self._unread()

    def _unread(self) -> bool:
        """Whether the client has yet to read what was written."""
        return self.transport.is_closing() or self.transport.get_write_buffer_size() > 0

    def _progress(self, phase: Phase) -> int:
        """Bytes that came or, of an answer, that were read: while it is held up its buffer only shrinks."""
        if phase is Phase.BODY:
            return self._received
        buffered: int = self.transport.get_write_buffer_size()
        return -buffered + self._drained * (1 << 40)

    def _begin_span(self, now: float) -> None:
        self.since = now
        self._mark = self._progress(self._seen[0])


def quieten_accepting(loop: asyncio.AbstractEventLoop) -> None:
    """
    Say once in a while, in a line, that no connection can be accepted for want of descriptors.

    asyncio's own loop says it with a traceback for every place of its backlog, once a second: hundreds of megabytes.
    """
    said_at = -REPORT_SECONDS

    def handle(running: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal said_at
        if "socket.accept()" not in str(context.get("message")):
            running.default_exception_handler(context)
        elif running.time() >= said_at + REPORT_SECONDS:
            said_at = running.time()
            log.error("cannot_accept", reason=str(context.get("exception")))

    loop.set_exception_handler(handle)
