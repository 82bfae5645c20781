"""
Carrying out tasks: cut a job's input, regenerate a chunk, finish a job.

Any task may come twice, late, or at the same time in another process: what counts is decided in SQL (``app.chunks``),
and files are named by their content.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from app.bundles import BundleFolders
from app.chunks import ChunkStore, ChunkWork, InputChangedError
from app.errors import ServiceError, StoreUnavailableError, UnknownModelError
from app.formats import BadRow, Row, SourceLimits, read_rows
from app.jobs import ChunkCounts, Job
from app.mappings import Increment, increments_of
from app.results import Rewritten, input_file, output_file, read_input_file
from app.settings import Settings
from app.sources import SourceRoots
from app.storage import Storage
from app.tasks import Step, Task, TaskQueue
from app.telemetry import logger
from models.checkpoint import Bundle, BundleDescription, load_bundle
from models.dataset import TOKENS, TokenArray
from models.errors import InputFormatError, UnknownDomainError, VocabularyError
from models.regenerate import Regenerated, Regenerator
from models.rules import RULES
from models.training import resolve_device
from models.vocabulary import Vocabulary

log = logger(__name__)

UPLOAD = "input/upload"
"""Name of an uploaded input inside its job's folder."""
# Held in memory and written in one transaction: 17 MB of them. A compressed input of nothing else would fill both.
MAX_BAD_ROWS = 100_000


class Regenerates(Protocol):
    """A ``models.regenerate.Regenerator``, here or in another process."""

    @property
    def bundle(self) -> BundleDescription:
        """What it was trained with."""
        ...

    def regenerate(
        self, sequences: Sequence[TokenArray], target: str, *, training_rows: bool = False
    ) -> list[Regenerated]:
        """See there."""
        ...


class Models(Protocol):
    """Where a worker gets its models."""

    def regenerator(self, version: str, rule: str) -> Regenerates:
        """The regenerator of one bundle and rule; raises UnknownModelError or BundleError."""
        ...


class BundleModels:
    """
    Bundles of the settings' folders, loaded when first asked for.

    Args:
        settings: where bundles lie, the device, and how many are kept.
    """

    def __init__(self, settings: Settings) -> None:
        self._folders = BundleFolders(settings.bundle, settings.bundle_root)
        self._device = settings.device
        self._lock = threading.Lock()
        self._load = lru_cache(maxsize=settings.max_loaded_bundles)(self._load_now)

    def regenerator(self, version: str, rule: str) -> Regenerator:
        """See ``Models``; one thread loads, the others wait for it."""
        with self._lock:
            return self._load(version, rule)

    def _load_now(self, version: str, rule: str) -> Regenerator:
        def load(directory: Path) -> Bundle:
            bundle = load_bundle(directory, resolve_device(self._device))
            if bundle.version != version:  # the folder was replaced between the two looks at it
                raise UnknownModelError(version)
            log.info("model_loaded", version=version, directory=str(directory))
            return bundle

        bundle = self._folders.load(version, load)
        return Regenerator(bundle, next(known for known in RULES if known == rule))


@dataclass(frozen=True)
class ChunkResult:
    """What a chunk adds to its job."""

    rows: list[Rewritten]
    bad: list[BadRow]
    counts: ChunkCounts
    increments: list[Increment]


class JobRunner:
    """
    Carries out tasks. Any of them may come twice, late, or at the same time elsewhere.

    Args:
        store: transitions of jobs and chunks.
        queue: where following tasks are put.
        storage: jobs' files.
        roots: which URIs may be read.
        limits: of inputs.
        chunk_sequences: sequences of one chunk.
        computing: chunks in the model at once; threads beyond that read and write meanwhile.
        models: where models come from.
    """

    def __init__(
        self,
        store: ChunkStore,
        queue: TaskQueue,
        storage: Storage,
        *,
        roots: SourceRoots,
        limits: SourceLimits,
        chunk_sequences: int,
        computing: int,
        models: Models,
    ) -> None:
        self._store = store
        self._queue = queue
        self._storage = storage
        self._roots = roots
        self._limits = limits
        self._chunk_sequences = chunk_sequences
        self._models = models
        self._computing = threading.BoundedSemaphore(computing)
        # How to renew what is worked on; replaced whole, so that another thread may read it.
        self._in_hand: tuple[Callable[[], None], ...] = ()
        self._taking = threading.Lock()

    def run(self, task: Task) -> None:
        """Carry out *task*; raises what should make the queue deliver it again."""
        if task.step is Step.CUT:
            self._cut(task.job_id)
        elif task.step is Step.CHUNK:
            self._chunk(task.job_id, task.chunk_index)
        else:
            self._finish(task.job_id)

    def renew(self) -> None:
        """Say of all that is in hand that it is being worked on; to be called now and then from another thread."""
        for renew in self._in_hand:
            renew()

    @contextlib.contextmanager
    def _holding(self, renew: Callable[[], None]) -> Iterator[None]:
        with self._taking:
            self._in_hand += (renew,)
        try:
            yield
        finally:
            with self._taking:
                self._in_hand = tuple(held for held in self._in_hand if held is not renew)

    def _cut(self, job_id: str) -> None:
        job = self._store.begin_cutting(job_id)
        if job is None:
            return
        try:
            with self._holding(partial(self._store.renew_cutting, job_id)), self._open_input(job) as file:
                self._cut_file(job, file)
        except StoreUnavailableError:
            raise
        except (ServiceError, InputFormatError, InputChangedError) as error:
            log.warning("job_input_refused", job_id=job_id, reason=str(error))
            self._store.fail(job_id, str(error))
        except Exception as error:  # the queue delivers again; should it be the last time, the reason is known
            self._store.cutting_failed(job_id, error)
            raise

    def _cut_file(self, job: Job, file: BinaryIO) -> None:
        num_chunks = 0
        rest = Part()
        for part in parts(read_rows(file, job.source_format, self._limits), self._chunk_sequences):
            if not part.rows:
                rest = part
                break
            content = input_file(part.rows)
            name = f"input/{num_chunks:08d}-{_digest(content)}.parquet"
            self._storage.write(f"{job.job_id}/{name}", content)
            if not self._store.add_chunk(
                job.job_id,
                num_chunks,
                input_name=name,
                num_rows=len(part.rows),
                rows_read=part.rows_read,
                bad=part.bad,
            ):
                return
            self._queue.put(Task(Step.CHUNK, job.job_id, num_chunks))
            num_chunks += 1
        self._store.end_cutting(job.job_id, num_chunks=num_chunks, rows_read=rest.rows_read, bad=rest.bad)
        self._finish(job.job_id)

    def _open_input(self, job: Job) -> BinaryIO:
        if job.source_uri is None:
            return self._storage.open(f"{job.job_id}/{UPLOAD}")
        return self._roots.open(job.source_uri, self._limits)

    def _chunk(self, job_id: str, chunk_index: int) -> None:
        work = self._store.begin_chunk(job_id, chunk_index)
        if work is None:
            return
        try:
            with self._holding(partial(self._store.renew_chunk, work)):
                added = self._regenerate(work)
        except StoreUnavailableError:
            raise
        except UnknownDomainError as error:
            self._store.fail(job_id, str(error))
            return
        except Exception as error:  # whatever a chunk does, its job ends with a reason and other jobs go on
            log.exception("chunk_failed", job_id=job_id, chunk=chunk_index)
            if self._store.chunk_failed(work, error):
                raise
            return
        log.info("chunk_done", job_id=job_id, chunk=chunk_index, added=added)
        self._finish(job_id)

    def _regenerate(self, work: ChunkWork) -> bool:
        content = self._storage.read(f"{work.job.job_id}/{work.input_name}")
        if _digest(content) not in work.input_name:
            raise InputChangedError(f"{work.input_name} is damaged")
        rows = read_input_file(content)
        model = self._models.regenerator(work.job.model_version, work.job.rule)
        with self._computing:
            result = regenerate_rows(model, work.job, rows)
        output = output_file(result.rows)
        # Named by content: a repeated or simultaneous attempt writes the same file.
        name = f"output/{work.chunk_index:08d}-{_digest(output)}.parquet"
        self._storage.write(f"{work.job.job_id}/{name}", output)
        return self._store.commit_chunk(
            work, output_name=name, counts=result.counts, bad=result.bad, increments=result.increments
        )

    def _finish(self, job_id: str) -> None:
        job = self._store.finish(job_id)
        if job is not None:
            log.info("job_ended", job_id=job_id, state=job.state, reason=job.reason)
            self._storage.delete_folder(f"{job_id}/input")


def regenerate_rows(regenerator: Regenerates, job: Job, rows: Sequence[Row]) -> ChunkResult:
    """
    Rewrite *rows* for the job's target.

    Unknown items are skipped and counted, or make their row a bad one, as the job says.

    Raises:
        UnknownDomainError: the model has no such target.
    """
    vocabulary = regenerator.bundle.vocabulary
    read: list[tuple[Row, TokenArray]] = []
    bad: list[BadRow] = []
    for row in rows:
        tokens, first_unknown = _tokens_of(row, vocabulary)
        if first_unknown is not None and job.on_unknown == "error":
            item, domain = row.item_ids[first_unknown], row.domains[first_unknown]
            reason = f"position {first_unknown}: unknown item {item!r} of domain {domain!r}"
            bad.append(BadRow(row.line, reason, row.num_rows))
        else:
            read.append((row, tokens))
    results = regenerator.regenerate(
        [tokens for _, tokens in read], job.target_domain, training_rows=job.purpose == "training"
    )
    rewritten = [
        Rewritten(
            user_id=row.user_id,
            items=vocabulary.item_ids_of(result.token_ids),
            kept=result.kept,
            replaced=result.replaced,
            deleted=result.deleted,
            unknown=len(row.item_ids) - len(tokens),
            truncated=len(tokens) - result.num_read,
        )
        for (row, tokens), result in zip(read, results, strict=True)
    ]
    return ChunkResult(rewritten, bad, _counts_of(rewritten), _increments(vocabulary, results))


def _tokens_of(row: Row, vocabulary: Vocabulary) -> tuple[TokenArray, int | None]:
    """Tokens of the known items, and the position of the first unknown one."""
    tokens: list[int] = []
    first_unknown: int | None = None
    for position, (domain, item_id) in enumerate(zip(row.domains, row.item_ids, strict=True)):
        try:
            tokens.append(vocabulary.token_id(domain, item_id))
        except VocabularyError:
            first_unknown = position if first_unknown is None else first_unknown
    return np.asarray(tokens, dtype=TOKENS), first_unknown


def _counts_of(rows: Sequence[Rewritten]) -> ChunkCounts:
    return ChunkCounts(
        sequences=len(rows),
        kept=sum(row.kept for row in rows),
        replaced=sum(row.replaced for row in rows),
        deleted=sum(row.deleted for row in rows),
        unknown=sum(row.unknown for row in rows),
        truncated=sum(row.truncated for row in rows),
    )


def _increments(vocabulary: Vocabulary, results: Sequence[Regenerated]) -> list[Increment]:
    if not results:
        return []
    steps = [result.steps for result in results]
    return increments_of(
        vocabulary,
        np.concatenate([step.source_tokens for step in steps]),
        np.concatenate([step.replacements for step in steps]),
        np.concatenate([step.score for step in steps]),
    )


@dataclass
class Part:
    """Rows for one chunk, and what was read on the way to them."""

    rows: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    rows_read: int = 0


def parts(entries: Iterable[Row | BadRow], chunk_sequences: int) -> Iterator[Part]:
    """
    *entries* in parts of *chunk_sequences* good rows; the last may hold fewer, or only bad ones.

    Raises:
        InputFormatError: more than MAX_BAD_ROWS of them are bad on the way to one part.
    """
    part = Part()
    for entry in entries:
        if isinstance(entry, BadRow):
            if len(part.bad) == MAX_BAD_ROWS:
                raise InputFormatError(
                    f"more than {MAX_BAD_ROWS:,} bad rows among fewer than {chunk_sequences:,} good ones; the first is "
                    f"line {part.bad[0].line}: {part.bad[0].reason}"
                )
            part.bad.append(entry)
            part.rows_read += entry.num_rows
            continue
        part.rows.append(entry)
        part.rows_read += entry.num_rows
        if len(part.rows) == chunk_sequences:
            yield part
            part = Part()
    if part.rows_read:
        yield part


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
