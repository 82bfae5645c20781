"""
Mutated files through both callers of the reader: `taesar prepare` and jobs read and name the same rows.

    python -m tests.reader_fuzz --files 100000 --seed 1     # make fuzz-reader

Of every file: nothing but an error on purpose is raised, and it is the same for both; no line is neither read nor
named; rows and bad rows are equal. A job reads Parquet in a process that may die: if it does, that is all of the file.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from app.errors import ServiceError
from app.jobs.formats import BadRow, SequenceRow, SourceLimits, read_rows
from app.jobs.reading_process import read_in_process
from models.data.reading.interactions import read_interactions
from models.data.reading.layouts import Layout
from models.data.reading.places import InputFile, files_of
from models.data.reading.raw_tables import BLANK, Budget
from models.data.reading.rows import RowReader
from models.errors import ModelError

LIMITS = SourceLimits(max_bytes=1 << 30, max_expanded_bytes=1 << 30, max_items=1 << 20)
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
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(lines), sink)
    return {
        "plain.csv": plain.encode(),
        "quoted.csv": quoted.encode(),
        "headless.csv": "".join(f"{u},{i},5,{t}\n" for u, i, _, t, _ in ROWS).encode(),
        "ratings.dat": colons.encode(),
        "table.inter": inter.encode(),
        "lines.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode(),
        "packed.csv": gzip.compress(plain.encode(), mtime=0),
        "table.parquet": sink.getvalue(),
    }


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


def read_as_job(path: Path, domain: str | None, *, apart: bool) -> Outcome:
    """The same as a job meets them; with *apart* in a process of its own."""
    files = files_of([_place(path, domain)])
    try:
        rows = list((read_in_process if apart else read_rows)(files, Layout(), LIMITS))
    except (ModelError, ServiceError) as error:
        return "error", str(error).replace(str(path), path.name)
    good = [row for row in rows if isinstance(row, SequenceRow)]
    listed = sorted(
        (row.user_id, item, domain, time)
        for row in good
        for item, domain, time in zip(row.item_ids, row.domains, row.times or [0.0] * len(row.item_ids), strict=True)
    )
    return "rows", (listed, sorted((row.line, row.reason) for row in rows if isinstance(row, BadRow)))


def problem_of(path: Path, *, apart: bool = False) -> str | None:
    """What is wrong with how *path* is read; None if nothing is."""
    domain = "a" if path.name.startswith("headless") else None
    job = read_as_job(path, domain, apart=apart)
    if apart and "ended the process" in str(job[1]):
        return None  # a crash of a native library: contained, and never of this process
    prepared = read_as_prepare(path, domain)
    if prepared[0] == "error" and "no column for the time" in str(prepared[1]):
        return None  # a job may do without times
    if job[0] == "error" or prepared[0] == "error":
        return None if job == prepared or "JSON" in str(prepared[1]) else f"prepare: {prepared}\njob: {job}"
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


def cases(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of mutated files."""
    source = random.Random(seed)
    originals = seeds()
    names = sorted(originals)
    for _ in range(count):
        name = source.choice(names)
        yield name, mutated(originals[name], source)


def main() -> int:
    """Try so many files; print and keep those that are read wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-parquet", action="store_true", help="a process for each of its files takes time")
    arguments = parser.parse_args()
    wrong, tried, began = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in cases(arguments.files, arguments.seed):
            is_parquet = name.endswith(".parquet")
            if is_parquet and arguments.without_parquet:
                continue
            path = Path(folder) / name
            path.write_bytes(content)
            tried += 1
            problem = problem_of(path, apart=is_parquet)
            if problem is not None:
                wrong += 1
                sys.stdout.write(f"{name}: {problem[:2000]}\n  {content!r}\n")
    sys.stdout.write(json.dumps({"files": tried, "wrong": wrong, "seconds": round(time.monotonic() - began)}) + "\n")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
