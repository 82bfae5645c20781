"""
A client of a Taesar service: regenerates, runs jobs, downloads results.

Needs httpx and nothing else of this package, so ``pip install --no-deps taesar`` and httpx are enough where models are
not run. What may be sent twice is tried again when the service is full (429), away for a moment (503, a broken
connection): everything but cancelling and removing, as regenerating changes nothing and a job carries an idempotency
key.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import httpx

FULL = 429
AWAY = frozenset({502, 503, 504})
TOO_LARGE = 413
ENDED = frozenset({"succeeded", "failed", "cancelled"})
POLL_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
# What a service of default settings takes in one request
MAX_SEQUENCES = 128
MAX_ITEMS = 32_768

Json = dict[str, Any]


class CallError(Exception):
    """
    The service refused a call, or did not answer.

    Args:
        message: what it said.
        status: of its answer; None where there was none.
        problem: the whole of it (RFC 9457), where it was one.
    """

    def __init__(self, message: str, *, status: int | None = None, problem: Json | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.problem = problem or {}


class JobFailedError(Exception):
    """A job ended otherwise than well; ``job`` is what the service says of it."""

    def __init__(self, job: Json) -> None:
        super().__init__(f"job {job['job_id']} is {job['state']}: {job.get('reason') or 'no reason given'}")
        self.job = job


class DamagedDownloadError(Exception):
    """A download is not what the service sent, or not all of it."""


@dataclass(frozen=True)
class Patience:
    """
    How often and how long to try.

    Args:
        attempts: in all, of one call.
        first_seconds: wait after the first; each further one is twice as long, and a random part of it is left out. A
            Retry-After of the service that is longer goes before it.
    """

    attempts: int = 6
    first_seconds: float = 0.5

    def wait_seconds(self, attempt: int, answer: httpx.Response | None) -> float:
        """How long to wait after so many attempts, the first being 1."""
        backoff: float = min(self.first_seconds * 2 ** (attempt - 1), LONGEST_WAIT_SECONDS)
        asked = "" if answer is None else answer.headers.get("Retry-After", "")
        at_least = float(asked) if asked.isdecimal() else 0.0
        # The random part comes on top of what was asked for: all who were refused at once must not come at once
        return max(at_least, backoff / 2) + random.uniform(0, backoff / 2)


PATIENT = Patience()


class TaesarClient:
    """
    A connection to one service; a context manager.

    Args:
        url: of the service, as http://127.0.0.1:8000.
        key: an accepted key, where the service asks for one.
        timeout_seconds: without a sign of life in a single call.
        max_sequences: per request; more are sent in several.
        max_items: per request, of all sequences.
        patience: with a service that is full or away.
        transport: how httpx connects; for tests and proxies.
        sleep: how to wait.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_seconds: float = 60.0,
        max_sequences: int = MAX_SEQUENCES,
        max_items: int = MAX_ITEMS,
        patience: Patience = PATIENT,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_seconds, transport=transport)
        self._max_sequences = max_sequences
        self._max_items = max_items
        self._patience = patience
        self._sleep = sleep

    def __enter__(self) -> TaesarClient:
        """The client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close its connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> Json:
        """What is loaded and what could be."""
        return self._json("GET", "/models")

    def regenerate(self, sequences: Sequence[Mapping[str, Any]], target_domain: str, **options: Any) -> list[Json]:
        """
        Rewrite *sequences* for the target domain; one answer each, in order.

        More than the service takes at once are sent in several requests, and what it still finds too large in halves.

        Args:
            sequences: ``{"user_id": ..., "items": [{"item_id": ..., "domain": ...}, ...]}`` each.
            target_domain: whose items the answers hold.
            options: further fields of POST /regenerate, as ``explain=True``.

        Raises:
            CallError: the service refuses it: an unknown domain, a sequence that is too long alone.
        """
        answers: list[Json] = []
        for part in split_sequences(sequences, max_sequences=self._max_sequences, max_items=self._max_items):
            answers += self._regenerate(part, {"target_domain": target_domain, **options})
        return answers

    def submit(
        self, target_domain: str, *, file: str | os.PathLike[str] | None = None, key: str | None = None, **options: Any
    ) -> Json:
        """
        Submit a job over an upload, or over what ``source_uri`` or ``sources`` name; what the service says of it.

        Args:
            target_domain: whose items the result holds.
            file: to upload.
            key: an idempotency key of your own, so that a program that starts again submits nothing twice.
            options: further fields of POST /jobs.

        Raises:
            CallError: the service refuses it.
            OSError: the file cannot be read.
        """
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        fields = {"target_domain": target_domain, **options}
        if file is None:
            return self._json("POST", "/jobs", json=fields, headers=headers)
        form = {name: _form_value(value) for name, value in fields.items() if value is not None}
        with Path(file).open("rb") as content:

            def again() -> Json:
                content.seek(0)
                return {"data": form, "files": {"file": (Path(file).name, content)}, "headers": headers}

            return self._call("POST", "/jobs", again).json()  # type: ignore[no-any-return]

    def job(self, job_id: str) -> Json:
        """State, progress and counts of a job."""
        return self._json("GET", f"/jobs/{job_id}")

    def jobs(self, *, state: str | None = None) -> Iterator[Json]:
        """All jobs, newest first, page by page."""
        query = {} if state is None else {"state": state}
        while True:
            page = self._json("GET", "/jobs", params=query)
            yield from page["jobs"]
            if page["next"] is None:
                return
            query["cursor"] = page["next"]

    def follow(self, job_id: str, *, poll_seconds: float = POLL_SECONDS) -> Iterator[Json]:
        """The job whenever it has changed, the last time when it has ended; a restart of the service ends nothing."""
        shown: Json | None = None
        while True:
            job = self.job(job_id)
            if job != shown:
                yield job
                shown = job
            if job["state"] in ENDED:
                return
            self._sleep(poll_seconds)

    def wait(self, job_id: str, *, poll_seconds: float = POLL_SECONDS) -> Json:
        """
        The job once it has succeeded.

        Raises:
            JobFailedError: it has failed, or was cancelled.
        """
        *_, job = self.follow(job_id, poll_seconds=poll_seconds)
        if job["state"] != "succeeded":
            raise JobFailedError(job)
        return job

    def cancel(self, job_id: str) -> Json:
        """Cancel a job; sent once."""
        return self._json("DELETE", f"/jobs/{job_id}", attempts=1)

    def remove(self, job_id: str) -> None:
        """Remove a job with its result and its counts; sent once, and needs the scope admin."""
        self._call("DELETE", f"/jobs/{job_id}", lambda: {"params": {"remove": "true"}}, attempts=1)

    def download(
        self, job_id: str, out: str | os.PathLike[str], *, result_format: str = "parquet", view: str | None = None
    ) -> Path:
        """
        Write the result of a job to *out*: whole, or not at all; what was there is replaced.

        A stream that breaks off is asked for again. Parquet must begin and end as such a file does, NDJSON of sequences
        have as many lines as the job has sequences.

        Raises:
            CallError: there is no result, or none any more.
            DamagedDownloadError: every attempt broke off, or was not what was asked for.
            OSError: it cannot be written.
        """
        target = Path(out)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        query = {"format": result_format} | ({} if view is None else {"view": view})
        try:
            self._download(f"/jobs/{job_id}/result", query, partial)
            if result_format == "parquet":
                _check_parquet(partial)
            if result_format == "ndjson" and view in (None, "sequences"):
                _check_lines(partial, self.job(job_id)["counts"]["sequences"])
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        return target

    def bad_rows(self, job_id: str) -> list[Json]:
        """The rows that a job left out: line and reason."""
        lines = self._call("GET", f"/jobs/{job_id}/errors", dict).iter_lines()
        return [httpx.Response(200, content=line).json() for line in lines if line]

    def mappings(self, domain: str, **filters: Any) -> Iterator[Json]:
        """The lines of a domain's dictionary, page by page; *filters* are the query parameters of GET /mappings."""
        query = {**filters}
        path = f"/mappings/{quote(domain, safe='')}"
        while True:
            page = self._json("GET", path, params=query)
            yield from page["mappings"]
            if page["next"] is None:
                return
            query["cursor"] = page["next"]

    def activate(self, version: str) -> Json:
        """Serve this model from now on; needs the scope admin."""
        return self._json("POST", f"/models/{quote(version, safe='')}/activate")

    def _regenerate(self, part: Sequence[Mapping[str, Any]], options: Json) -> list[Json]:
        try:
            body = {**options, "sequences": list(part)}
            found: list[Json] = self._json("POST", "/regenerate", json=body)["sequences"]
            return found
        except CallError as error:
            if error.status != TOO_LARGE or len(part) == 1:
                raise
        # This service takes less at once than most
        half = len(part) // 2
        return self._regenerate(part[:half], options) + self._regenerate(part[half:], options)

    def _json(self, method: str, path: str, *, attempts: int | None = None, **arguments: Any) -> Json:
        found: Json = self._call(method, path, lambda: arguments, attempts=attempts).json()
        return found

    def _call(
        self, method: str, path: str, arguments: Callable[[], Json], *, attempts: int | None = None
    ) -> httpx.Response:
        """The answer of 2xx; *arguments* makes those of httpx for every attempt anew. Raises CallError."""
        most = attempts or self._patience.attempts
        for attempt in range(1, most + 1):
            answer: httpx.Response | None = None
            try:
                answer = self._http.request(method, path, **arguments())
            except httpx.TransportError as error:
                if attempt == most:
                    raise CallError(f"{self._http.base_url} does not answer: {error}") from error
            if answer is not None and (attempt == most or answer.status_code not in {FULL, *AWAY}):
                return _checked(answer)
            self._sleep(self._patience.wait_seconds(attempt, answer))
        raise AssertionError("the last attempt returns or raises")

    def _download(self, path: str, query: Json, partial: Path) -> None:
        for attempt in range(1, self._patience.attempts + 1):
            answer: httpx.Response | None = None
            try:
                with self._http.stream("GET", path, params=query) as answer, partial.open("wb") as file:
                    if answer.status_code not in {FULL, *AWAY} or attempt == self._patience.attempts:
                        if not answer.is_success:
                            answer.read()
                        _write(_checked(answer), file)
                        return
            except httpx.TransportError as error:  # a stream that breaks off in the middle is one, too
                if attempt == self._patience.attempts:
                    raise DamagedDownloadError(f"{path} broke off: {error}") from error
            self._sleep(self._patience.wait_seconds(attempt, answer))


def split_sequences(
    sequences: Iterable[Mapping[str, Any]], *, max_sequences: int = MAX_SEQUENCES, max_items: int = MAX_ITEMS
) -> Iterator[list[Mapping[str, Any]]]:
    """*sequences* in order, in parts of at most so many, with so many items; one that has more stands alone."""
    part: list[Mapping[str, Any]] = []
    num_items = 0
    for sequence in sequences:
        length = len(sequence["items"])
        if part and (len(part) == max_sequences or num_items + length > max_items):
            yield part
            part, num_items = [], 0
        part.append(sequence)
        num_items += length
    if part:
        yield part


def _checked(answer: httpx.Response) -> httpx.Response:
    """*answer* when it is one of 2xx; raises CallError with what the problem says."""
    if answer.is_success:
        return answer
    problem: Json = {}
    with contextlib.suppress(ValueError):
        problem = answer.json()
    said = problem.get("detail") or answer.reason_phrase
    raise CallError(f"{answer.status_code}: {said}", status=answer.status_code, problem=problem)


def _write(answer: httpx.Response, file: BinaryIO) -> None:
    for part in answer.iter_bytes():
        file.write(part)


def _check_parquet(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(4)
        file.seek(max(path.stat().st_size - 4, 0))
        if (begin, file.read(4)) != (b"PAR1", b"PAR1"):
            raise DamagedDownloadError(f"what came of {path.name} is no whole Parquet file")


def _check_lines(path: Path, expected: int) -> None:
    with path.open("rb") as file:
        found = sum(1 for _ in file)
    if found != expected:
        raise DamagedDownloadError(f"{found} sequences came of a job that has {expected}")


def _form_value(value: Any) -> Any:
    """A field as a form has it: no truth values, lists as several."""
    return str(value).lower() if isinstance(value, bool) else value
