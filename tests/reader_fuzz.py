"""
Mutated files through both callers of the reader: `taesar prepare` and jobs read and name the same rows.

    python -m tests.reader_fuzz --files 100000 --seed 1     # make fuzz-reader

Of every file: nothing but an error on purpose is raised, and it is the same for both; no line is neither read nor
named; rows and bad rows are equal. Files are tried in processes forked for many of them, since Arrow's C++ may end its
process over a damaged Parquet file. Where it does, a job must say so of the file, and so must the command; no other
format may. Each case is made from the seed and its number alone.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.cli.console import USAGE_ERROR
from app.errors import ServiceError
from app.jobs.formats import BadRow, SequenceRow, SourceLimits, read_rows
from app.jobs.reading_process import read_in_process
from models.data.reading.interactions import read_interactions
from models.data.reading.layouts import Layout
from models.data.reading.places import InputFile, files_of
from models.data.reading.raw_tables import BLANK, Budget
from models.data.reading.rows import RowReader
from models.errors import InputFormatError, ModelError

LIMITS = SourceLimits(max_bytes=1 << 30, max_expanded_bytes=1 << 30, max_items=1 << 20)
SHOWN_EVERY = 2_000
UNREADABLE = "not a readable Parquet file"
CLAIM = "is claimed for domain"
TEXT = 'say "it",\nagain'
ROWS = [(f"u{n % 5}", f"i{n}", "ab"[n % 2], 1_300_000_000 + 7 * n, "ok" if n % 4 else TEXT) for n in range(24)]
TOKENS = [b'"', b"\n", b",", b"\t", b"\r", b"\r\n", b"\x00", b"\xff", b"\xc2\xa0", b"inf", b"nan", b"1e999", b"::"]
TOKENS += [b"{", b"}", b"x" * 600, b"\xe2\x80\xa8", b"\\ud800", b"null", b"-1", b"[]", b"\x1f", b"\xc2\x85"]


def seeds() -> dict[str, bytes]:
    """Well-formed files, by name."""
    header = "user,item,domain,timestamp,text\n"
    plain = header + "".join(f"{u},{i},{d},{t},ok\n" for u, i, d, t, _ in ROWS)
    quoted = header + "".join(f'{u},"{i}",{d},{t},"{x.replace(chr(34), chr(34) * 2)}"\n' for u, i, d, t, x in ROWS)
    inter = "user_id:token\titem_id:token\tdomain:token\ttimestamp:float\n"
    inter += "".join(f"{u}\t{i}\t{d}\t{t}\n" for u, i, d, t, _ in ROWS)
    lines = [dict(zip(("user", "item", "domain", "timestamp", "text"), row, strict=True)) for row in ROWS]
    colons = "user::item::domain::timestamp\n" + "".join(f"{u}::{i}::{d}::{t}\n" for u, i, d, t, _ in ROWS)
    return {
        "plain.csv": plain.encode(),
        "quoted.csv": quoted.encode(),
        "headless.csv": "".join(f"{u},{i},5,{t}\n" for u, i, _, t, _ in ROWS).encode(),
        "ratings.dat": colons.encode(),
        "table.inter": inter.encode(),
        "lines.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode(),
        "packed.csv": gzip.compress(plain.encode(), mtime=0),
        **_parquet_seeds(pa.Table.from_pylist(lines)),
    }


def _parquet_seeds(table: pa.Table) -> dict[str, bytes]:
    """The same rows packed, as they stand (a changed byte is a changed id), and of other types."""
    users, items, domains, times = (table.column(name).to_pylist() for name in table.column_names[:4])
    typed = pa.table(
        {
            "user": pa.array([None if user == "u4" else float(user[1:]) for user in users], pa.float64()),
            "item": pa.array([Decimal(f"{row}.50") for row in range(len(items))], pa.decimal128(9, 2)),
            "domain": pa.array(domains).dictionary_encode(),
            "timestamp": pa.array([1000 * time for time in times], pa.int64()).cast(
                pa.timestamp("ms", "Europe/Zurich")
            ),
        }
    )
    plain = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    return {
        "table.parquet": _parquet(table),
        "plain.parquet": _parquet(table, row_group_size=10, **plain),
        "typed.parquet": _parquet(typed, use_dictionary=["domain"], compression="zstd"),
        "typed_plain.parquet": _parquet(typed, row_group_size=7, **plain),
    }


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def mutated(content: bytes, source: random.Random) -> bytes:
    """*content* with a few bytes changed, left out, put in or repeated."""
    text = bytearray(content)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(text) + 1)
        width = source.randint(0, 12)
        match source.randrange(5):
            case 0:
                text[place : place + 1] = bytes([source.randrange(256)])
            case 1:
                del text[place : place + width]
            case 2:
                text[place:place] = source.choice(TOKENS)
            case 3:
                text[place:place] = text[place : place + 4 * width]
            case _:
                del text[max(1, len(text) - source.randrange(40)) :]
    return bytes(text)


Outcome = tuple[str, object]


def read_as_prepare(path: Path, domain: str | None) -> Outcome:
    """The rows by user and the bad rows, or the error, as `taesar prepare` meets them."""
    try:
        found = read_interactions([_place(path, domain)], max_bad_row_share=1.0)
    except ModelError as error:
        return "error", str(error).replace(str(path), path.name)
    ids = found.ids
    rows = zip(found.users_N, found.items_N, found.domains_N, found.times_N, strict=True)
    named = [(row.line, row.reason) for row in found.bad_rows if row.reason != BLANK]
    claimed = sum(CLAIM in reason for _, reason in named)
    listed = sorted((ids.users[int(u)], ids.items[int(i)], ids.domains[int(d)], float(t)) for u, i, d, t in rows)
    bad = sorted((line, reason) for line, reason in named if CLAIM not in reason)
    return "rows", (listed if not claimed else len(listed) + claimed, bad)


def read_as_job(path: Path, domain: str | None) -> Outcome:
    """The same as a job meets them."""
    files = files_of([_place(path, domain)])
    try:
        rows = list(read_rows(files, Layout(), LIMITS))
    except (ModelError, ServiceError) as error:
        return "error", str(error).replace(str(path), path.name)
    good = [row for row in rows if isinstance(row, SequenceRow)]
    listed = sorted(
        (row.user_id, item, domain, time)
        for row in good
        for item, domain, time in zip(row.item_ids, row.domains, row.times or [0.0] * len(row.item_ids), strict=True)
    )
    return "rows", (listed, sorted((row.line, row.reason) for row in rows if isinstance(row, BadRow)))


def problem_of(path: Path) -> str | None:
    """What is wrong with how *path* is read; None if nothing is."""
    domain = "a" if path.name.startswith("headless") else None
    job = read_as_job(path, domain)
    prepared = read_as_prepare(path, domain)
    if prepared[0] == "error" and "no column for the time" in str(prepared[1]):
        return None  # a job may do without times
    if job[0] == "error" or prepared[0] == "error":
        same = job == prepared or all(UNREADABLE in str(said[1]) for said in (job, prepared))
        return None if same or "JSON" in str(prepared[1]) else f"prepare: {prepared}\njob: {job}"
    listed, bad = prepared[1]  # type: ignore[misc]
    job_listed, job_bad = job[1]  # type: ignore[misc]
    if bad != job_bad:
        return f"bad rows differ: {bad} and {job_bad}"
    if listed != (job_listed if isinstance(listed, list) else len(job_listed)):
        return f"rows differ: {listed} and {job_listed}"
    return _unaccounted(files_of([_place(path, domain)])[0])


def _place(path: Path, domain: str | None) -> str:
    return f"{domain}={path}" if domain else str(path)


def _unaccounted(file: InputFile) -> str | None:
    """A line that is neither read nor named, or twice."""
    with file.open() as content:
        reader = RowReader(content, file.facts, Layout(), Budget())
        lines: list[int] = []
        for batch in reader.batches():
            lines += [*batch.lines_N.tolist(), *(bad.line for bad in batch.bad), *batch.blank_lines.tolist()]
    twice = [line for line, count in Counter(lines).items() if count > 1]
    if twice:
        return f"lines {twice[:5]} are told twice"
    assert file.path is not None
    content_bytes = file.path.read_bytes()
    if reader.input_format == "parquet" or content_bytes.startswith(b"\x1f\x8b") or b'"' in content_bytes:
        return None  # lines inside of quotes are their row's
    num_lines = content_bytes.count(b"\n") + (not content_bytes.endswith(b"\n"))
    missing = set(range(1, num_lines + 1)) - set(lines)
    return None if missing <= {1} else f"lines {sorted(missing)[:5]} are neither read nor named"


def overwritten(content: bytes, source: random.Random) -> bytes:
    """*content* with a few bytes changed in the pages before the footer: what moves nothing is still decoded."""
    text = bytearray(content)
    pages = len(text) - 8 - int.from_bytes(text[-8:-4], "little")
    for _ in range(source.randint(1, 4)):
        text[source.randrange(4, pages)] = source.randrange(256)
    return bytes(text)


def cases(count: int, seed: int, *, first: int = 0, step: int = 1) -> Iterator[tuple[int, str, bytes]]:
    """Number, name and content of every *step*-th mutated file from *first* on."""
    originals = seeds()
    names = sorted(originals)
    for number in range(first, count, step):
        source = random.Random(f"{seed}:{number}")
        name = source.choice(names)
        change = overwritten if name.endswith(".parquet") and source.random() < 0.75 else mutated
        yield number, name, change(originals[name], source)


def crash_of(path: Path) -> str | None:
    """What is wrong with how a file is treated over which a process of ours ended; None if nothing is."""
    if path.suffix != ".parquet":
        return "ended the process"
    command = [sys.executable, "-c", "from app.cli.taesar import start; start()"]
    command += ["prepare", str(path), "--out", str(path.parent / "dataset"), "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != USAGE_ERROR or f"taesar: {path}: the file ended the process" not in ended.stderr:
        return f"the command ended with {ended.returncode}: {ended.stderr[-1000:]}"
    try:
        list(read_in_process(files_of([path]), Layout(), LIMITS))
    except InputFormatError as error:
        return None if "ended the process" in str(error) else f"a job said: {error}"
    return "a job read it"


@dataclass(frozen=True)
class Trials:
    """Which files to try: numbers below *files*, every *step*-th."""

    folder: Path
    files: int
    seed: int
    step: int


class Lane:
    """A process that tries every so many-th file from *first* on; forked anew after a file that ends it."""

    def __init__(self, trials: Trials, first: int) -> None:
        self._trials = trials
        self._folder = trials.folder / str(first)
        self._folder.mkdir()
        self._fork(first)

    def _fork(self, first: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.connection, theirs = fork.Pipe(duplex=False)
        self._process = fork.Process(target=self._try, args=(theirs, first))
        self._process.start()
        theirs.close()
        self._number, self._path = first, self._folder

    def _try(self, connection: Connection, first: int) -> None:
        for number, name, content in cases(self._trials.files, self._trials.seed, first=first, step=self._trials.step):
            path = self._folder / name
            path.write_bytes(content)
            connection.send((number, path, None))
            problem = problem_of(path)
            if problem is not None:
                connection.send((number, path, problem))
        connection.send(None)

    def outcome(self) -> Outcome | None:
        """
        What the process says next: that it has begun a file ('tried') or what was wrong with it; None at the end.

        A file that ends the process is 'contained' if the callers get over it.
        """
        try:
            said = self.connection.recv()
        except EOFError:
            self._process.join()
            ended = self._path
            problem = crash_of(ended)
            self._fork(self._number + self._trials.step)
            return ("contained", ended) if problem is None else ("wrong", f"{ended.name}: {problem}")
        if said is None:
            self._process.join()
            return None
        self._number, self._path, problem = said
        if problem is None:
            return "tried", self._path.name
        return "wrong", f"{self._path.name}: {problem[:2000]}\n  {self._path.read_bytes()!r}"


def main() -> int:
    """Try so many files; print those that are read wrongly, then the numbers of all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter(tried=0, parquet=0, contained=0, wrong=0)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder), arguments.files, arguments.seed, arguments.processes)
        lanes = [Lane(trials, first) for first in range(min(arguments.processes, arguments.files))]
        while lanes:
            ready = wait([lane.connection for lane in lanes])
            for lane in [lane for lane in lanes if lane.connection in ready]:
                outcome = lane.outcome()
                if outcome is None:
                    lanes.remove(lane)
                    continue
                counts[outcome[0]] += 1
                if outcome[0] == "tried" and counts["tried"] % SHOWN_EVERY == 0:
                    sys.stderr.write(f"{dict(counts)}\n")
                counts["parquet"] += outcome[0] == "tried" and str(outcome[1]).endswith(".parquet")
                if outcome[0] == "wrong":
                    sys.stdout.write(f"{outcome[1]}\n")
                    sys.stdout.flush()
    sys.stdout.write(json.dumps({**counts, "seconds": round(time.monotonic() - began)}) + "\n")
    return min(counts["wrong"], 1)


if __name__ == "__main__":
    sys.exit(main())
