"""
Interactions -> thresholds -> mixed sequences -> splits -> a dataset folder (paper, section 5.1.1).

The steps of ``prepare``, in order:
    1. read the inputs and name their bad rows (``models.data.reading``);
    2. drop exact duplicates;
    3. apply the thresholds to a fixed point;
    4. merge every user's rows of all domains by time, ties by a seeded hash;
    5. keep each user's last ``max_length`` rows, and apply the thresholds once more;
    6. number the items of each domain in a seeded random order (``numbering``);
    7. split: s[:n-2] to train on, s[n-2] to validate, s[n-1] to test;
    8. write the folder that ``models.data.dataset`` describes.
The folder's content depends on the set of input rows and the configuration only: not on the order of the rows (unless
``ties="input"``), on threads, or on the clock. The manifest says when it was made, and is the one file that differs.

Shapes: N = rows, U = users, I = items, D = domains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from models.data.dataset import (
    FORMAT_VERSION,
    MANIFEST,
    REQUIRED_FILES,
    TIMES,
    TOKENS,
    Sequences,
    Times,
    TokenArray,
    sha256_of,
)
from models.data.period import now_text, period_of
from models.data.preparation_report import Counts, DomainCounts, PreparationReport, Removed
from models.data.reading.identifiers import Codes
from models.data.reading.interactions import Identifiers, Interactions, ReadingProgress, read_interactions
from models.data.reading.layouts import Layout
from models.data.reading.places import files_of
from models.data.reading.preview import Preview, preview
from models.data.reading.times import Mask, TimeUnit
from models.errors import EmptyDatasetError, OutputExistsError
from models.files import check_replaceable, replace_folder
from models.vocabulary import Vocabulary

Ties = Literal["hash", "input"]
Overlap = Literal["all", "any"]
UserThreshold = Literal["per_domain", "total"]
Numbering = Literal["shuffled", "first-appearance"]

BAD_ROWS = "bad_rows.csv"
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class PreparationConfig:
    """
    Every rule of the preparation; the defaults are the paper's.

    Args:
        min_user_interactions: a user's rows below this number go, per domain or in total (``user_threshold``). 3 is
            also the least that leaves something to train on beside a validation and a test item.
        min_item_interactions: an item with fewer rows goes. Items met once or twice cannot be learned.
        user_threshold: "per_domain" drops a user's rows of each domain where they are too few; "total" counts the
            user's rows of all domains together.
        overlap: "all" keeps users present in every domain of the input, who link the domains; "any" keeps everyone,
            for tables where few users link all of them.
        max_length: rows kept per user, the last ones, 3 or more. The decoder's number of positions.
        ties: "hash" orders a user's rows of equal time by a seeded hash of user and item. With day-level stamps a
            third of neighbours tie, and file order would often carry the domain or the label. "input" keeps the
            order of the file, for logs known to be exact.
        seed: of the tie hash and, unless ``numbering_seed`` is given, of the item numbers.
        numbering: "shuffled" numbers a domain's items by a seeded hash of their ids, which says nothing of the
            sequences. "first-appearance" numbers them as the sequences name them, held-out items included, as the
            released code does: item n + 1 is then often the same user's next item, the held-out one among them. Only
            to reproduce that code and measure its leak; never for anything else.
        numbering_seed: of the shuffled item numbers alone, to renumber a dataset and change nothing else.
        max_bad_row_share: above this share of bad rows the input is refused. A few broken lines are common in
            exported logs; one in a hundred says that the file is not what it claims to be.
        layout: how the input is laid out: columns, header, separator, filter.
        anyway: go on although the input looks like something else (``preview``).

    Raises:
        ValueError: a value is out of its range.
    """

    min_user_interactions: int = 3
    min_item_interactions: int = 3
    user_threshold: UserThreshold = "per_domain"
    overlap: Overlap = "all"
    max_length: int = 128
    ties: Ties = "hash"
    seed: int = 2025
    numbering: Numbering = "shuffled"
    numbering_seed: int | None = None
    max_bad_row_share: float = 0.01
    layout: Layout = field(default_factory=Layout)
    anyway: bool = False

    def __post_init__(self) -> None:
        if min(self.min_user_interactions, self.min_item_interactions) < 1:
            raise ValueError("min_user_interactions and min_item_interactions are at least 1")
        if self.max_length < 3:
            raise ValueError("max_length is at least 3: one item to train on, one to validate, one to test")
        if not 0 <= self.max_bad_row_share <= 1:
            raise ValueError("max_bad_row_share lies in 0..1")
        choices = {"user_threshold": UserThreshold, "overlap": Overlap, "ties": Ties, "numbering": Numbering}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is one of {', '.join(get_args(kind))}")
        if self.numbering == "first-appearance" and self.numbering_seed is not None:
            raise ValueError("numbering_seed is of shuffled numbers; first appearance has none")


def prepare(
    inputs: Path | Sequence[str | Path],
    out: Path,
    config: PreparationConfig | None = None,
    *,
    overwrite: bool = False,
    progress: ReadingProgress | None = None,
    name: str | None = None,
    show: Callable[[Preview], None] | None = None,
) -> PreparationReport:
    """
    Write the dataset folder *out* from the interactions in *inputs*; it appears whole or not at all.

    Args:
        inputs: a file, or files, folders and globs, each perhaps with its domain before ``=``; see ``places``.
        out: a folder that does not exist, is empty, or (with *overwrite*) holds a dataset.
        progress: called with a stage's name and the fraction of it that is done.
        name: what people call the dataset; without it, the name of the folder *out*.
        show: called with what was read, before anything is made of it.

    Raises:
        InputFormatError, BadRowsError: as ``read_interactions`` does.
        ImplausibleInputError: the input is not what it was taken for; see ``preview``.
        EmptyDatasetError: nothing is left; names the threshold that removed the last rows.
        OutputExistsError: *out* holds something that must not be replaced.
    """
    config = config or PreparationConfig()
    report_stage = progress or (lambda _stage, _fraction: None)
    _check_output(out, overwrite=overwrite)
    places = [inputs] if isinstance(inputs, Path) else list(inputs)
    source = ", ".join(map(str, places))
    interactions = read_interactions(
        places, config.layout, max_bad_row_share=config.max_bad_row_share, progress=report_stage
    )
    looks = preview(interactions, anyway=config.anyway)
    if show is not None:
        show(looks)
    ids, rows_read, bad_rows = interactions.ids, interactions.num_rows, interactions.bad_rows
    rows_filtered, time_unit = interactions.num_filtered, interactions.time_unit
    report_stage("dropping duplicates", 0.0)
    rows = _distinct(interactions)
    del interactions  # as large as the rows themselves
    rows_distinct = len(rows)

    report_stage("applying thresholds", 0.0)
    all_rows = rows.counts(ids.domains)
    rows, removed = _apply_thresholds(rows, config, ids.domains, where=f"{source}: of {all_rows}")
    before_cut = rows.counts(ids.domains)

    report_stage("merging by time", 0.0)
    rows = _ordered(rows, ids, config)
    uncut = len(rows)
    rows = _last_rows(rows, config.max_length)
    rows_cut = uncut - len(rows)
    where = f"{source}: after keeping each user's last {config.max_length}, of {before_cut}"
    rows, removed_after_cut = _apply_thresholds(rows, config, ids.domains, where=where)

    report_stage("numbering items", 0.0)
    vocabulary, token_of_item = _number_items(rows, ids, config)
    split = _split(rows, ids.users, token_of_item)
    report = PreparationReport(
        rows_read=rows_read,
        rows_bad=len(bad_rows),
        rows_filtered=rows_filtered,
        rows_duplicate=rows_read - len(bad_rows) - rows_filtered - rows_distinct,
        removed=removed,
        before_cut=before_cut,
        rows_cut=rows_cut,
        removed_after_cut=removed_after_cut,
        result=rows.counts(ids.domains),
        bad_rows=bad_rows,
        fingerprint=_fingerprint(vocabulary, split),
    )
    report_stage("writing", 0.0)
    with replace_folder(out) as folder:
        _write(folder, name or out.name, _provenance(places, time_unit), config, vocabulary, split, report)
    report_stage("writing", 1.0)
    return report


@dataclass(frozen=True)
class _Rows:
    """Interactions as parallel arrays; ``positions_N`` is the place in the input."""

    users_N: Codes
    items_N: Codes
    domains_N: Codes
    times_N: Times
    positions_N: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.users_N)

    def take(self, index: Mask | npt.NDArray[np.uint32]) -> _Rows:
        return _Rows(*(getattr(self, f.name)[index] for f in fields(self)))

    def counts(self, domain_ids: pl.Series) -> Counts:
        """Users, items and interactions, over all rows and per domain."""
        per_domain = []
        for code, domain in enumerate(domain_ids):
            here = self.domains_N == code
            users, items, rows = _num_distinct(self.users_N[here]), _num_distinct(self.items_N[here]), int(here.sum())
            per_domain.append(DomainCounts(domain, users, items, rows, rows / users if users else 0.0))
        users = _num_distinct(self.users_N)
        mean_length = len(self) / users if users else 0.0
        return Counts(users, sum(d.items for d in per_domain), len(self), mean_length, tuple(per_domain))


def _num_distinct(codes: Codes) -> int:
    return int(np.count_nonzero(np.bincount(codes))) if len(codes) else 0


def _distinct(interactions: Interactions) -> _Rows:
    """The rows without exact duplicates (the first stays), sorted by user and time."""
    table = pl.DataFrame(
        {
            "user": interactions.users_N,
            "time": interactions.times_N,
            "item": interactions.items_N,
            "domain": interactions.domains_N,
        }
    ).with_row_index("position")
    # Every item has one domain, so equal (user, time, item) is an equal row, and sorting makes duplicates neighbours.
    table = table.sort("user", "time", "item", "position")
    user, time, item = (table[name].to_numpy() for name in ("user", "time", "item"))
    first = np.ones(len(table), dtype=np.bool_)
    first[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1]) | (item[1:] != item[:-1])
    rows = _Rows(user, item, table["domain"].to_numpy(), time, table["position"].to_numpy())
    return rows if first.all() else rows.take(first)


def _apply_thresholds(
    rows: _Rows, config: PreparationConfig, domain_ids: pl.Series, *, where: str
) -> tuple[_Rows, Removed]:
    """
    Remove rows until every threshold holds for every row that is left.

    Each threshold only ever removes, and more rows never make one fail, so the fixed point is the same in any order.

    Raises:
        EmptyDatasetError: nothing is left.
    """
    removed = dict.fromkeys((f.name for f in fields(Removed)), 0)
    names = {
        "by_item_threshold": f"at least {config.min_item_interactions} interactions per item",
        "by_user_threshold": f"at least {config.min_user_interactions} interactions per user"
        + (" in a domain" if config.user_threshold == "per_domain" else ""),
        "by_overlap": f"users present in every domain ({', '.join(domain_ids)})",
    }
    if len(rows) == 0:
        raise EmptyDatasetError(f"{where}: there is no row to begin with")
    num_users, num_items = int(rows.users_N.max()) + 1, int(rows.items_N.max()) + 1
    while True:
        before = len(rows)
        for rule in names:
            keep = _passing(rule, rows, config, num_users, num_items, len(domain_ids))
            num_removed = len(rows) - int(np.count_nonzero(keep))
            if num_removed == 0:
                continue
            removed[rule] += num_removed
            if num_removed == len(rows):
                so_far = ", ".join(f"{removed[name]:,} by {words!r}" for name, words in names.items())
                raise EmptyDatasetError(
                    f"{where}, nothing is left: the threshold {names[rule]!r} removed the last {num_removed:,} rows "
                    f"(removed in all: {so_far})"
                )
            rows = rows.take(keep)
        if len(rows) == before:
            return rows, Removed(**removed)


def _passing(
    rule: str, rows: _Rows, config: PreparationConfig, num_users: int, num_items: int, num_domains: int
) -> Mask:
    """Which rows one threshold leaves, bool [N]."""
    kept: Mask
    if rule == "by_item_threshold":
        kept = (np.bincount(rows.items_N, minlength=num_items) >= config.min_item_interactions)[rows.items_N]
        return kept
    if rule == "by_user_threshold" and config.user_threshold == "total":
        kept = (np.bincount(rows.users_N, minlength=num_users) >= config.min_user_interactions)[rows.users_N]
        return kept
    if rule == "by_overlap" and config.overlap == "any":
        return np.ones(len(rows), dtype=np.bool_)
    cells_N = rows.users_N.astype(np.int64) * num_domains + rows.domains_N
    counts_UD = np.bincount(cells_N, minlength=num_users * num_domains).reshape(num_users, num_domains)
    if rule == "by_user_threshold":
        kept = counts_UD[rows.users_N, rows.domains_N] >= config.min_user_interactions
    else:
        kept = (np.count_nonzero(counts_UD, axis=1) == num_domains)[rows.users_N]
    return kept


def _ordered(rows: _Rows, ids: Identifiers, config: PreparationConfig) -> _Rows:
    """Every user's rows by time; ties by the rule of the configuration."""
    if config.ties == "input":
        tie_N = rows.positions_N.astype(np.uint64)
    else:
        user_hash = _hashes(ids.users, rows.users_N)
        item_hash = _hashes(ids.items, rows.items_N)
        tie_N = _mixed(user_hash[rows.users_N] ^ _mixed(item_hash[rows.items_N], config.seed), config.seed)
    # The item's code settles the one case in 2**64 where two hashes are equal.
    keys = pl.DataFrame({"user": rows.users_N, "time": rows.times_N, "tie": tie_N, "item": rows.items_N})
    order = keys.select(pl.arg_sort_by("user", "time", "tie", "item")).to_series().to_numpy()
    return rows.take(order)


def _hashes(texts: pl.Series, used: Codes) -> Hashes:
    """A 64-bit hash of each text that *used* points to, uint64 [len(texts)]; the others 0."""
    hashes = np.zeros(len(texts), dtype=np.uint64)
    codes = np.flatnonzero(np.bincount(used, minlength=len(texts)))
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts.gather(codes))
    hashes[codes] = np.frombuffer(digests, dtype="<u8")
    return hashes


def _mixed(hashes: Hashes, seed: int) -> Hashes:
    """Scramble 64-bit numbers by a seed: one step of the SplitMix64 generator. Same on every platform and version."""
    state = hashes + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _last_rows(rows: _Rows, max_length: int) -> _Rows:
    """Each user's last *max_length* rows; *rows* are sorted by user."""
    ends_U = np.cumsum(np.bincount(rows.users_N))
    from_end_N = ends_U[rows.users_N] - np.arange(len(rows))
    keep = from_end_N <= max_length
    return rows if keep.all() else rows.take(keep)


def _shuffled(items: Codes, rows: _Rows, ids: Identifiers, config: PreparationConfig) -> Hashes:
    """A sort key per item that is a function of its id and the seed alone."""
    seed = config.seed if config.numbering_seed is None else config.numbering_seed
    return _mixed(_hashes(ids.items, rows.items_N)[items], seed)


def _number_items(rows: _Rows, ids: Identifiers, config: PreparationConfig) -> tuple[Vocabulary, TokenArray]:
    """
    Number the items of each domain by the rule ``numbering``, and map item codes to tokens.

    Shuffled numbers are a function of the ids alone. First appearance, *rows* read user by user in sorted order and in
    time, puts a user's consecutive items at neighbouring numbers, held-out items among them.

    Returns:
        The vocabulary (domains without items are left out) and the token of each item code, int32 [I], 0 if unused.
    """
    items, first_rows = np.unique(rows.items_N, return_index=True)
    domain_of_item = np.zeros(len(ids.items), dtype=np.int32)
    domain_of_item[rows.items_N] = rows.domains_N
    place = first_rows if config.numbering == "first-appearance" else _shuffled(items, rows, ids, config)
    items = items[np.lexsort((items, place, domain_of_item[items]))]
    token_of_item = np.zeros(len(ids.items), dtype=TOKENS)
    token_of_item[items] = np.arange(1, len(items) + 1, dtype=TOKENS)
    names = ids.items.gather(items).to_list()
    codes, firsts = np.unique(domain_of_item[items], return_index=True)
    bounds = [*firsts.tolist(), len(items)]
    item_ids = tuple(tuple(names[start:stop]) for start, stop in pairwise(bounds))
    return Vocabulary(tuple(ids.domains.gather(codes).to_list()), item_ids), token_of_item


@dataclass(frozen=True)
class _Split:
    """The mixed sequences in three parts; users in sorted order, 0 where a sequence is too short. Times of s[:n]."""

    user_ids: pl.Series
    train: Sequences
    validation_U: TokenArray
    test_U: TokenArray
    times_N: Times
    offsets: npt.NDArray[np.int64]


def _split(rows: _Rows, user_ids: pl.Series, token_of_item: TokenArray) -> _Split:
    """Cut each sequence into s[:n-2], s[n-2] and s[n-1]; *rows* are sorted by user, then in sequence order."""
    tokens_N = token_of_item[rows.items_N]
    lengths_U = np.bincount(rows.users_N)
    users = np.flatnonzero(lengths_U)
    lengths_U = lengths_U[users]
    ends_U = np.cumsum(lengths_U)
    train_lengths_U = np.maximum(lengths_U - 2, 0)
    in_train_N = np.arange(len(rows)) < np.repeat(ends_U - lengths_U + train_lengths_U, lengths_U)
    offsets = np.concatenate([[0], np.cumsum(train_lengths_U)]).astype(np.int64)
    validation_U = np.where(lengths_U >= 2, tokens_N[np.maximum(ends_U - 2, 0)], 0).astype(TOKENS)
    return _Split(
        user_ids.gather(users),
        Sequences(tokens_N[in_train_N], offsets),
        validation_U,
        tokens_N[ends_U - 1],
        rows.times_N,
        np.concatenate([[0], ends_U]).astype(np.int64),
    )


def _fingerprint(vocabulary: Vocabulary, split: _Split) -> str:
    """SHA-256 over vocabulary, users and tokens: equal for equal content, whatever wrote the files."""
    digest = hashlib.sha256(vocabulary.fingerprint.encode())
    for user_id in split.user_ids:
        digest.update(f"{len(user_id)}:{user_id}".encode())
    for array in (split.train.offsets, split.train.token_ids, split.validation_U, split.test_U):
        digest.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def _write(
    folder: Path,
    name: str,
    provenance: dict[str, object],
    config: PreparationConfig,
    vocabulary: Vocabulary,
    split: _Split,
    report: PreparationReport,
) -> None:
    vocabulary.save(folder / "vocabulary.parquet")
    lists = pa.LargeListArray.from_arrays(split.train.offsets, split.train.token_ids)
    train = pl.DataFrame({"user_id": split.user_ids, "token_ids": pl.Series(lists, dtype=pl.List(pl.Int32))})
    train.write_parquet(folder / "train.parquet")
    for part, tokens_U in (("validation", split.validation_U), ("test", split.test_U)):
        pl.DataFrame({"user_id": split.user_ids, "token_id": tokens_U}).write_parquet(folder / f"{part}.parquet")
    times = pl.Series(pa.LargeListArray.from_arrays(split.offsets, split.times_N), dtype=pl.List(pl.Float64))
    pl.DataFrame({"user_id": split.user_ids, "times": times}).write_parquet(folder / TIMES)
    bad_rows: dict[str, list[object]] = {
        "line": [row.line for row in report.bad_rows],
        "reason": [row.reason for row in report.bad_rows],
    }
    schema: dict[str, type[pl.DataType]] = {"line": pl.Int64, "reason": pl.String}
    if any(row.file for row in report.bad_rows):  # several files
        bad_rows["file"] = [row.file for row in report.bad_rows]
        schema["file"] = pl.String
    pl.DataFrame(bad_rows, schema=schema).write_csv(folder / BAD_ROWS)
    counted = asdict(report)
    del counted["bad_rows"], counted["fingerprint"]
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "created": now_text(),
        "period": period_of(split.times_N),
        "fingerprint": report.fingerprint,
        "source": provenance,
        "config": asdict(config),
        "statistics": counted,
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _provenance(places: Sequence[str | Path], time_unit: TimeUnit) -> dict[str, object]:
    """What the dataset was made from, a file on this machine by its hash, and the unit of its times."""
    files = [
        {
            "name": file.path.name if file.path else file.facts.name,
            "sha256": sha256_of(file.path) if file.path else None,
            "bytes": file.num_bytes,
        }
        for file in files_of(places)
    ]
    if len(files) == 1:
        return {"name": files[0]["name"], "sha256": files[0]["sha256"], "time_unit": time_unit}
    digest = hashlib.sha256("".join(str(file["sha256"]) for file in files).encode()).hexdigest()
    name = ", ".join(str(place) for place in places)
    return {"name": name, "sha256": digest, "files": files, "time_unit": time_unit}


def _check_output(out: Path, *, overwrite: bool) -> None:
    written = {MANIFEST, *REQUIRED_FILES}
    check_replaceable(
        out, what="a dataset", required=frozenset(written), ours=lambda name: name in written | {BAD_ROWS, TIMES}
    )
    if (out / MANIFEST).is_file() and not overwrite:
        raise OutputExistsError(f"{out}: holds a dataset already; --overwrite replaces it, or name another folder")
