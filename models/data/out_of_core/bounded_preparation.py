"""
``models.data.preparation`` in bounded memory: the same bytes, whatever the memory and the number of threads.

    1. read the inputs by the one reader, a batch at a time, into Parquet (``raw_rows``);
    2. number users and items in the sorted order of their ids, on an engine that spills (``coding``);
    3. write every user's rows to the chunk of a range of users that fits (``user_chunks``);
    4. go from chunk to chunk: duplicates, thresholds, order, cut, thresholds, split, and write the tables.
All temporary files lie beside the output and go at the end (``temporary_folder``).

Shapes: N = rows of a chunk, I = items, D = domains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from models.data.dataset import TOKENS, TokenArray
from models.data.dataset_tables import DatasetTables, write_bad_rows, write_manifest
from models.data.extension import rows_as_table
from models.data.ordering import Hashes, last_rows, mixed, ordered, text_hashes, ties_by_hash, ties_by_input
from models.data.out_of_core.chunked_thresholds import (
    ItemCounts,
    RunningCounts,
    apply_thresholds_to_chunks,
    items_of_domains,
    kept_counts,
)
from models.data.out_of_core.coding import CodedItems, Coding
from models.data.out_of_core.memory_share import MemoryShare
from models.data.out_of_core.raw_rows import RawRows, write_raw_rows
from models.data.out_of_core.running_fingerprint import RunningFingerprint
from models.data.out_of_core.spilling_engine import SpillingEngine
from models.data.out_of_core.temporary_folder import temporary_folder
from models.data.out_of_core.times_on_disk import TimesOnDisk
from models.data.out_of_core.user_chunks import CUT, KEPT, SET_ASIDE, UserChunk, UserChunks, divide_into_chunks
from models.data.period import period_of
from models.data.preparation import PreparationConfig, check_output
from models.data.preparation_report import Counts, PreparationReport
from models.data.provenance import provenance_of
from models.data.reading.interactions import SHOWN_ROWS, Identifiers, ReadingProgress, too_many_bad
from models.data.reading.places import files_of
from models.data.reading.preview import DomainPreview, Preview, check_domains, previewed
from models.data.reading.raw_tables import BLANK, BadLine
from models.data.reading.times import in_seconds
from models.data.splits import TimeBounds, divide, time_bounds
from models.data.thresholds import Rows
from models.errors import BadRowsError, ConfigurationError, EmptyDatasetError
from models.files import replace_folder
from models.vocabulary import fingerprint_of_items

# Of the bad rows, the report has the first so many; ``bad_rows.csv`` has all.
REPORTED_BAD_ROWS = 1000
_BATCH_ROWS = 1 << 16

NUMBERING, DIVIDING = "numbering users and items", "dividing rows by user"
SORTING, THRESHOLDS = "dropping duplicates", "applying thresholds"
MERGING, WRITING = "merging by time", "writing"


def prepare_in_bounded_memory(
    inputs: Sequence[str | Path],
    out: Path,
    config: PreparationConfig,
    share: MemoryShare,
    *,
    overwrite: bool = False,
    progress: ReadingProgress | None = None,
    name: str | None = None,
    show: Callable[[Preview], None] | None = None,
) -> PreparationReport:
    """
    As ``models.data.preparation.prepare``, with no more than *share* at a time.

    Raises:
        ConfigurationError: columns are carried along, or one user's rows or the items do not fit *share*.
        OSError: the disk is full.
        As ``prepare`` does, besides.
    """
    if config.layout.carried:
        raise ConfigurationError("no column comes along (--carry) out of core: prepare in memory, without --memory")
    check_output(out, overwrite=overwrite)
    report = progress or (lambda _stage, _fraction: None)
    with temporary_folder(out) as folder:
        work = _Preparation(list(inputs), config, share, folder, report)
        prepared = work.run(folder / "dataset", name or out.name, show)
        with replace_folder(out) as place:
            for path in (folder / "dataset").iterdir():
                path.rename(place / path.name)
    report(WRITING, 1.0)
    return prepared


@dataclass(frozen=True)
class _Numbered:
    """Items of the dataset in token order: their codes, and of every item code its token, 0 if unused."""

    codes: npt.NDArray[np.int64]
    token_of_item: TokenArray


class _Preparation:
    def __init__(
        self,
        inputs: list[str | Path],
        config: PreparationConfig,
        share: MemoryShare,
        folder: Path,
        report: ReadingProgress,
    ) -> None:
        self.inputs, self.config, self.share, self.folder, self.report = inputs, config, share, folder, report
        self.source = ", ".join(map(str, inputs))

    def run(self, target: Path, name: str, show: Callable[[Preview], None] | None) -> PreparationReport:
        config = self.config
        target.mkdir()
        raw = write_raw_rows(files_of(self.inputs), config.layout, self.folder, self.report)
        if raw.num_filtered and not raw.num_good:
            conditions = " and ".join(map(str, config.layout.where))
            with SpillingEngine(self.folder, self.share, self.report) as engine:
                coding = Coding(engine, raw, self.folder, self.share)
                self._judge_bad_rows(raw, target, coding.bad_rows(NUMBERING), 0)
            raise EmptyDatasetError(f"{self.source}: no row is left by {conditions}")
        chunks, num_claims, first_bad = self._chunks(raw, target)
        counts_I, rows_distinct, every = self._sort(chunks, raw, show)

        where = f"{self.source}: of {every}"
        removed = apply_thresholds_to_chunks(
            chunks, counts_I, config, where=where, stage=THRESHOLDS, report=self.report
        )
        before_cut = kept_counts(chunks, counts_I)
        rows_cut = self._order_and_cut(chunks, counts_I)
        where = f"{self.source}: after keeping each user's last {config.max_length}, of {before_cut}"
        removed_after_cut = apply_thresholds_to_chunks(
            chunks, counts_I, config, where=where, stage=THRESHOLDS, report=self.report
        )
        numbered = self._number_items(chunks, counts_I)
        bounds = None
        if config.split == "time":
            times = TimesOnDisk(chunks)
            bounds = time_bounds(times, validation_from=config.validation_from, test_from=config.test_from)
        fingerprint, period = self._write_tables(target, chunks, numbered, bounds)
        num_bad = raw.num_bad + num_claims
        report = PreparationReport(
            rows_read=raw.num_rows,
            rows_bad=num_bad,
            rows_filtered=raw.num_filtered,
            rows_duplicate=raw.num_rows - num_bad - raw.num_filtered - rows_distinct,
            removed=removed,
            before_cut=before_cut,
            rows_cut=rows_cut,
            removed_after_cut=removed_after_cut,
            result=kept_counts(chunks, counts_I),
            bad_rows=first_bad,
            fingerprint=fingerprint,
        )
        facts = {
            "name": name,
            "source": provenance_of(self.inputs, raw.time_unit),
            "split": {"name": config.split} if bounds is None else bounds.described(),
        }
        write_manifest(target, facts, config, period, report)
        return report

    # -- From files to chunks

    def _chunks(self, raw: RawRows, target: Path) -> tuple[UserChunks, int, tuple[BadLine, ...]]:
        """The chunks, how many rows claim an item for another domain, and the first bad rows."""
        tables = self.folder / "ids"
        tables.mkdir()
        with SpillingEngine(self.folder, self.share, self.report) as engine:
            coding = Coding(engine, raw, tables, self.share)
            items = coding.items(NUMBERING)
            num_claims = coding.num_minority_claims()
            first_bad = self._judge_bad_rows(raw, target, coding.bad_rows(NUMBERING), num_claims)
            check_domains(items.domain_names, len(items), anyway=self.config.anyway)
            ranges = coding.user_ranges(NUMBERING, len(items.domain_names))
            rows = coding.rows(DIVIDING, items)
            chunks = divide_into_chunks(rows, ranges, self.folder / "chunks")
        raw.rows.unlink()
        return UserChunks(tuple(chunks), items), num_claims, first_bad

    def _judge_bad_rows(
        self, raw: RawRows, target: Path, rows: Iterable[BadLine], num_claims: int
    ) -> tuple[BadLine, ...]:
        """
        Write ``bad_rows.csv``; the first bad rows.

        Args:
            rows: every bad row, in order.
            num_claims: how many of them claim an item for another domain.

        Raises:
            BadRowsError: there are too many.
        """
        first: list[BadLine] = []
        lossy: list[BadLine] = []

        def looked_at() -> Iterator[BadLine]:
            for row in rows:
                if len(first) < REPORTED_BAD_ROWS:
                    first.append(row)
                if row.reason != BLANK and len(lossy) < SHOWN_ROWS:
                    lossy.append(row)
                yield row

        write_bad_rows(target, looked_at(), with_files=bool(raw.num_bad + num_claims) and any(raw.files))
        num_lossy = raw.num_bad + num_claims - raw.num_blank
        num_filled = raw.num_rows - raw.num_blank
        if num_lossy > self.config.max_bad_row_share * num_filled:
            share = self.config.max_bad_row_share
            raise BadRowsError(too_many_bad(self.source, num_lossy, num_filled, share, lossy))
        return tuple(first)

    # -- From chunk to chunk

    def _sort(
        self, chunks: UserChunks, raw: RawRows, show: Callable[[Preview], None] | None
    ) -> tuple[ItemCounts, int, Counts]:
        """Drop duplicates; rows of every item, distinct rows, and what they hold. Shows what was read."""
        items = chunks.items
        counts_I = np.zeros(len(items), dtype=np.int64)
        running = RunningCounts(items.domain_names)
        read = RunningCounts(items.domain_names)
        shared = 0
        first_D = np.full(len(items.domain_names), np.inf)
        last_D = np.full(len(items.domain_names), -np.inf)
        for index, chunk in enumerate(chunks):
            self.report(SORTING, index / len(chunks))
            every = chunk.sort(items.domains_I)
            read.add(chunk, every)
            np.minimum.at(first_D, every.domains_N, every.times_N)
            np.maximum.at(last_D, every.domains_N, every.times_N)
            shared += _in_every_domain(chunk, every, len(items.domain_names))
            del every
            rows = chunk.rows(items.domains_I)
            running.add(chunk, rows)
            counts_I += np.bincount(rows.items_N, minlength=len(items))
        items_D = items_of_domains(chunks, counts_I)
        looks = self._preview(raw, items, read.counts(items_D), shared, first_D, last_D)
        if show is not None:
            show(looks)
        counts = running.counts(items_D)
        return counts_I, counts.interactions, counts

    def _preview(
        self,
        raw: RawRows,
        items: CodedItems,
        counts: Counts,
        shared: int,
        first_D: npt.NDArray[np.float64],
        last_D: npt.NDArray[np.float64],
    ) -> Preview:
        problem = check_domains(items.domain_names, len(items), anyway=self.config.anyway)
        seconds = (in_seconds(times_D, raw.time_unit).tolist() for times_D in (first_D, last_D))
        domains = tuple(
            DomainPreview(
                one.domain, one.interactions, one.users, one.items, one.users / max(1, counts.users), first, last
            )
            for one, first, last in zip(counts.domains, *seconds, strict=True)
        )
        warnings = [*([] if problem is None else [problem]), *raw.remarks.warnings]
        return previewed(domains, users=counts.users, shared=shared, notes=raw.remarks.notes, warnings=warnings)

    def _order_and_cut(self, chunks: UserChunks, counts_I: ItemCounts) -> int:
        """Put every user's kept rows in order and cut all but the last; how many were cut."""
        num_cut = 0
        for index, chunk in enumerate(chunks):
            self.report(MERGING, index / len(chunks))
            fates = chunk.read("fates")
            places = np.flatnonzero(fates == KEPT)
            rows = chunk.rows(chunks.items.domains_I, places)
            ties = self._ties(chunk, rows, chunks.items)
            # From here on a row's position is its place in the chunk
            rows = replace(rows, positions_N=places.astype(np.uint32))
            sequence = ordered(rows, ties)
            last = last_rows(sequence, self.config.max_length)
            if len(last) < len(sequence):
                fates[places] = CUT
                fates[last.positions_N] = KEPT
                cut = np.flatnonzero(fates == CUT)
                num_cut += len(cut)
                counts_I -= np.bincount(chunk.read("items")[cut], minlength=len(counts_I))
                chunk.write("fates", fates)
            chunk.write("sequence", last.positions_N)
        return num_cut

    def _ties(self, chunk: UserChunk, rows: Rows, items: CodedItems) -> Hashes:
        if self.config.ties == "input":
            return ties_by_input(rows)
        return ties_by_hash(rows, text_hashes(chunk.user_ids().to_list()), items.hashes_I, self.config.seed)

    def _sequences(self, chunks: UserChunks) -> Iterator[tuple[UserChunk, Rows]]:
        """The rows that are kept, each user's in order."""
        for chunk in chunks:
            places = chunk.read("sequence")
            places = places[chunk.read("fates")[places] == KEPT]
            yield chunk, chunk.rows(chunks.items.domains_I, places)

    def _number_items(self, chunks: UserChunks, counts_I: ItemCounts) -> _Numbered:
        items = np.flatnonzero(counts_I)
        if self.config.numbering == "shuffled":
            place = mixed(chunks.items.hashes_I[items], self.config.seed_of_numbers)
        else:
            place = self._first_places(chunks, len(counts_I))[items]
        codes = items[np.lexsort((items, place, chunks.items.domains_I[items]))]
        token_of_item = np.zeros(len(counts_I), dtype=TOKENS)
        token_of_item[codes] = np.arange(1, len(codes) + 1, dtype=TOKENS)
        return _Numbered(codes, token_of_item)

    def _first_places(self, chunks: UserChunks, num_items: int) -> npt.NDArray[np.uint64]:
        """Where the sequences name every item first, all sequences one after another."""
        first_I = np.full(num_items, np.iinfo(np.uint64).max, dtype=np.uint64)
        before = 0
        for _, rows in self._sequences(chunks):
            items, firsts = np.unique(rows.items_N, return_index=True)
            first_I[items] = np.minimum(first_I[items], firsts.astype(np.uint64) + np.uint64(before))
            before += len(rows)
        return first_I

    # -- The tables

    def _write_tables(
        self, target: Path, chunks: UserChunks, numbered: _Numbered, bounds: TimeBounds | None
    ) -> tuple[str, dict[str, Any]]:
        """Write them; the fingerprint and the period."""
        first, last = np.inf, -np.inf
        items, names = chunks.items, pl.Series(list(chunks.items.domain_names), dtype=pl.String)
        with DatasetTables(target, by_time=bounds is not None) as tables:
            domains = items.domains_I[numbered.codes]
            for start in range(0, len(domains), _BATCH_ROWS):
                codes = numbered.codes[start : start + _BATCH_ROWS]
                tables.add_items(start + 1, names.gather(items.domains_I[codes]), items.ids(codes))
            sizes = np.bincount(domains, minlength=len(names))
            fingerprint = RunningFingerprint(_fingerprint_of(items, numbered, sizes), self.folder)
            for index, (chunk, rows) in enumerate(self._sequences(chunks)):
                self.report(WRITING, index / len(chunks))
                if len(rows):
                    split = divide(rows, chunk.user_ids(), numbered.token_of_item, bounds)
                    tables.add_users(split)
                    fingerprint.add(split)
                    first, last = min(first, float(rows.times_N.min())), max(last, float(rows.times_N.max()))
                waiting = chunk.rows(items.domains_I, np.flatnonzero(chunk.read("fates") == SET_ASIDE))
                tables.add_waiting(_named(waiting, chunk, items, names))
        return fingerprint.hexdigest(), period_of(np.array([first, last]))


def _named(rows: Rows, chunk: UserChunk, items: CodedItems, domains: pl.Series) -> pl.DataFrame:
    """Rows with their names, as ``models.data.extension.rows_as_table`` has them."""
    distinct, place_N = np.unique(rows.items_N, return_inverse=True)
    ids = Identifiers(chunk.user_ids(), items.ids(distinct), domains)
    return rows_as_table(replace(rows, items_N=place_N.astype(np.int32)), ids)


def _fingerprint_of(items: CodedItems, numbered: _Numbered, sizes_D: npt.NDArray[np.int64]) -> str:
    """That of the vocabulary; see ``Vocabulary.fingerprint``."""
    ends_D = np.cumsum(sizes_D)

    def ids(start: int, stop: int) -> Iterator[str]:
        for at in range(start, stop, _BATCH_ROWS):
            yield from items.ids(numbered.codes[at : min(stop, at + _BATCH_ROWS)])

    return fingerprint_of_items(
        (name, size, ids(end - size, end))
        for name, size, end in zip(items.domain_names, sizes_D.tolist(), ends_D.tolist(), strict=True)
        if size
    )


def _in_every_domain(chunk: UserChunk, rows: Rows, num_domains: int) -> int:
    """How many users have a row in every domain."""
    present = np.zeros(chunk.num_users * num_domains, dtype=np.bool_)
    present[rows.users_N.astype(np.int64) * num_domains + rows.domains_N] = True
    return int(np.count_nonzero(present.reshape(-1, num_domains).all(axis=1)))
