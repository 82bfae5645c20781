"""
Every error that the service raises on purpose; ``app.http.problems`` gives each its status.

ServiceError
|- UnauthorizedError             no key, or one that is not accepted
|- MissingScopeError             the key may not do this
|- KeyLimitError                 the key asks for more than its share
|- KeyFileError                  the file of keys cannot be used
|- ForeignHostError              without keys, a name that is none of this service's
|- ForeignPageError              without keys, a web page of another origin
|- MissingCsrfTokenError         a browser's cookie came without the token of the page that it belongs to
|- ContentTypeError              a body that does not say it is what the path takes
|- ReceivingFullError            too much is being received at once, and this sender was the slowest
|- UnknownReportError            no report of that name
|- UnknownModelError             no bundle of that version is loaded or can be loaded
|- RequestTooLargeError          over a documented limit: sequences, items or bytes
|- UnknownSequenceItemsError     on_unknown "error" and items that the model does not know
|- InvalidBodyError              the body cannot be decoded at all
|- QueueFullError                the batcher's queue has no room
|- ClientLeftError               the client closed the connection before its answer was ready
|- ModelUnavailableError         no bundle is active
|- ActivationConflictError       what serves does not allow that change of what serves
|- ModelProcessDiedError         the process that holds the networks ended over a call, twice
|  `- ModelNotRunningError       it is not there, whatever it would be asked
|- ModelThreadDiedError          the thread that runs the model ended
|- ShuttingDownError             the service drains and takes no more work
|- UnknownJobError               no job of that id
|- InvalidSourceError            a job's input URI is malformed, climbs, or has no reader installed
|- SourceNotAllowedError         an input URI outside the allow-list
|- SourceNotFoundError           an allowed input URI that names no readable file
|- DestinationNotAllowedError    a result URI outside the allow-list
|- UnsupportedFormatError        an input or result format that is none of those offered
|- NotAcceptableError            the Accept header admits none of the formats offered
|- IdempotencyConflictError      an Idempotency-Key that came before with another request
|- JobStateError                 the job is not in a state that allows the request
|- ResultGoneError               the result, or the list of bad rows, is past its retention and was removed
|  `- ResultDamagedError         a file of the result is missing, or is not what was written
|- InvalidCursorError            a page cursor that this service did not write
|- BackupError                   a backup cannot be made or restored as asked
|- StoreUnavailableError         the database does not answer
|  `- StoreRefusesError          it answers, and takes neither this user nor this password, or has no such database
|- QueueRefusesError             Redis answers, and takes neither this user nor this password
|- FilesUnavailableError         the storage of jobs' files does not answer, or is full
`- FailedChecksError             checks of the process fail; carries every check's result
   |- NotReadyError              requests cannot be served just now
   `- NotAliveError              requests cannot be served before a restart

``models.errors`` has its own tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_LISTED_PARTS = 100
"""Invalid places that one answer names: a wrong request of thousands of items gets a short answer, and the count."""


@dataclass(frozen=True)
class InvalidPart:
    """One place of a request that is wrong: its path from the request's root, and why."""

    location: tuple[str | int, ...]
    message: str


class ServiceError(Exception):
    """The root: everything that ``app`` raises on purpose."""


class UnauthorizedError(ServiceError):
    """No bearer key was sent, or one that is not accepted."""


class MissingCsrfTokenError(ServiceError):
    """A browser's cookie vouches for a change only beside the token that its own page was given."""

    def __init__(self) -> None:
        super().__init__("a request that changes something needs the page's token in the header X-CSRF-Token")


class UnknownReportError(ServiceError):
    """No report has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no report {name!r}; GET /reports lists those that are there")


class MissingScopeError(ServiceError):
    """The key is accepted, but may not do this."""

    def __init__(self, name: str, scope: str) -> None:
        super().__init__(f"the key {name} lacks the scope {scope}")
        self.scope = scope


class KeyLimitError(ServiceError):
    """
    The key asks for more than its share.

    Args:
        what: it asks for.
        setting: says how much its share is.
        retry_after_seconds: when there may be room.
    """

    def __init__(self, what: str, setting: str, *, retry_after_seconds: int) -> None:
        super().__init__(f"{what} ({setting}); try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class KeyFileError(ServiceError):
    """The file of keys cannot be used; says which line is wrong, never what stands there."""


class ForeignHostError(ServiceError):
    """Without keys: the request calls the service by a name that is none of its own."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{host!r} is no name of this service; TAESAR_ALLOWED_HOSTS lists those that are")


class ForeignPageError(ServiceError):
    """Without keys: a web page of another origin sent the request."""

    def __init__(self) -> None:
        super().__init__("a web page of another origin may not call a service that asks for no key")


class ContentTypeError(ServiceError):
    """The body does not say that it is what the path takes."""

    def __init__(self, *expected: str) -> None:
        super().__init__(f"send the body as {' or '.join(expected)}, named in Content-Type")


class ReceivingFullError(ServiceError):
    """Too many bytes are being received at once, and this sender was the slowest, or nobody else was slow."""

    def __init__(self, *, limit: int, retry_after_seconds: int) -> None:
        super().__init__(
            f"the requests under way fill {limit} bytes (TAESAR_MAX_RECEIVING_BYTES); try again in "
            f"{retry_after_seconds} s"
        )
        self.retry_after_seconds = retry_after_seconds


class UnknownModelError(ServiceError):
    """No bundle of that version is loaded or can be loaded."""

    def __init__(self, version: str) -> None:
        super().__init__(f"no model of version {version!r}; GET /models lists those that can be activated")


class RequestTooLargeError(ServiceError):
    """The request is over a documented limit."""

    def __init__(self, what: str, limit: int, setting: str) -> None:
        super().__init__(f"{what}; the limit is {limit} ({setting})")
        self.what = what
        self.limit = limit


class UnknownSequenceItemsError(ServiceError):
    """
    Items that the model does not know, named with their places in the request.

    Args:
        parts: the first of them, at least one and at most MAX_LISTED_PARTS.
        total: how many there are.
    """

    def __init__(self, parts: Sequence[InvalidPart], total: int) -> None:
        assert 0 < len(parts) <= min(total, MAX_LISTED_PARTS)
        super().__init__(parts[0].message + and_more(total, len(parts)))
        self.parts = tuple(parts)


class InvalidBodyError(ServiceError):
    """The request body cannot be decoded."""


class QueueFullError(ServiceError):
    """The queue has no room for the request."""

    def __init__(self, *, waiting: int, capacity: int, retry_after_seconds: int) -> None:
        super().__init__(f"{waiting} of {capacity} places are taken; try again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class ClientLeftError(ServiceError):
    """The client closed the connection before its answer was ready."""


class ModelUnavailableError(ServiceError):
    """No bundle is active."""


class ActivationConflictError(ServiceError):
    """What serves does not allow that change: no version to roll back to, a canary that is active already."""


class ModelProcessDiedError(ServiceError):
    """The process that holds the networks ended over this call, twice."""


class ModelNotRunningError(ModelProcessDiedError):
    """The process that holds the networks ended, and cannot be started for now, whatever it would be asked."""


class ModelThreadDiedError(ServiceError):
    """The thread that runs the model ended; only a restart brings it back."""


class ShuttingDownError(ServiceError):
    """The service is shutting down and takes no more work."""


class FailedChecksError(ServiceError):
    """At least one check of the process fails; carries the result of each."""

    def __init__(self, checks: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {result}" for name, result in checks.items() if result != "ok"))
        self.checks = dict(checks)


class NotReadyError(FailedChecksError):
    """Requests cannot be served just now."""


class NotAliveError(FailedChecksError):
    """Requests cannot be served before a restart."""


class UnknownJobError(ServiceError):
    """No job has this id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}")


class InvalidSourceError(ServiceError):
    """The URI of a job's input is malformed, climbs out of its folder, or needs a reader that is not installed."""


class SourceNotAllowedError(ServiceError):
    """The URI of a job's input is outside the allow-list; says nothing of whether it exists."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri!r} lies under none of the allowed places (TAESAR_INPUT_ROOTS)")


class DestinationNotAllowedError(ServiceError):
    """The URI of a job's result is outside the allow-list; says nothing of whether it exists."""

    def __init__(self, uri: str) -> None:
        super().__init__(f"{uri!r} lies under none of the allowed places (TAESAR_OUTPUT_ROOTS)")


class SourceNotFoundError(ServiceError):
    """An allowed URI names no file that can be read."""


class UnsupportedFormatError(ServiceError):
    """The format of an input or a result is none of those offered."""


class NotAcceptableError(ServiceError):
    """The Accept header admits none of the formats offered."""

    def __init__(self, offered: Sequence[str]) -> None:
        super().__init__(f"offered: {', '.join(offered)}")


class IdempotencyConflictError(ServiceError):
    """The Idempotency-Key came before, with another request."""


class JobStateError(ServiceError):
    """The job is not in a state that allows the request."""


class ResultGoneError(ServiceError):
    """The result, or the list of bad rows, is past its retention and was removed."""


class ResultDamagedError(ResultGoneError):
    """A file of the result is missing, or does not hold what was written."""


class InvalidCursorError(ServiceError):
    """The page cursor is none that this service wrote."""

    def __init__(self) -> None:
        super().__init__("not a cursor of this list; take 'next' of the page before, or begin without one")


class BackupError(ServiceError):
    """A backup cannot be made or restored as asked; nothing of what serves was changed."""


class StoreUnavailableError(ServiceError):
    """The database does not answer."""


class StoreRefusesError(StoreUnavailableError):
    """The database answers, but not to this user, password or name of a database: waiting mends nothing."""


class QueueRefusesError(ServiceError):
    """Redis answers, but not to this user or password: waiting mends nothing."""


class FilesUnavailableError(ServiceError):
    """The storage of jobs' files does not answer, or is full."""


def and_more(total: int, listed: int) -> str:
    """What follows the first of *total* wrong places, *listed* of which are named."""
    more = "" if total == 1 else f" (and {total - 1:,} more)"
    return more if listed == total else f"{more}; the first {listed} are listed"
