"""
Interactions -> thresholds -> mixed sequences -> splits -> a dataset folder (paper, section 5.1.1).

The steps of ``prepare``, in order:
    1. read the inputs and name their bad rows (``models.data.reading``);
    2. drop exact duplicates;
    3. apply the thresholds to a fixed point;
    4. merge every user's rows of all domains by time, ties by a seeded hash;
    5. keep each user's last ``max_length`` rows, and apply the thresholds once more;
    6. number the items of each domain in a seeded random order (``numbering``);
    7. divide each sequence (``splits``): s[:n-2] to train on, s[n-2] to validate, s[n-1] to test, or by time;
    8. write the folder that ``models.data.dataset`` describes.
The folder's content depends on the set of input rows and the configuration only: not on the order of the rows (unless
``ties="input"``), on threads, or on the clock. The manifest says when it was made, and is the one file that differs.

Shapes: N = rows, U = users, I = items, D = domains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl

from models.data.dataset import (
    CARRIED,
    JOINED,
    LATER,
    MANIFEST,
    REQUIRED_FILES,
    TIMES,
    TOKENS,
    WAITING,
    Dataset,
    TokenArray,
    load_dataset,
)
from models.data.dataset_tables import BAD_ROWS, DatasetTables, write_bad_rows, write_manifest
from models.data.extension import ancestors_of, extended, joined_rows, rows_as_table
from models.data.ordering import Hashes, last_rows, mixed, ordered, text_hashes, ties_by_hash, ties_by_input
from models.data.period import period_of
from models.data.preparation_report import PreparationReport
from models.data.provenance import provenance_of
from models.data.reading.identifiers import Codes
from models.data.reading.interactions import Identifiers, ReadingProgress, read_interactions
from models.data.reading.layouts import Layout
from models.data.reading.preview import Preview, preview
from models.data.splits import Split, SplitName, TimesInMemory, divide, time_bounds
from models.data.thresholds import Anchors, Overlap, Rows, UserThreshold, apply_thresholds, distinct_rows
from models.errors import ConfigurationError, EmptyDatasetError, OutputExistsError
from models.files import check_replaceable, replace_folder
from models.vocabulary import Vocabulary

Ties = Literal["hash", "input"]
Numbering = Literal["shuffled", "first-appearance"]


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
        split: "leave-one-out" holds out each user's last two items; "time" what comes after dates (``splits``).
        validation_from, test_from: those dates, ISO 8601 or numbers of the log; None for the last fifth and tenth of
            the interactions.
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
    split: SplitName = "leave-one-out"
    validation_from: str | None = None
    test_from: str | None = None
    max_bad_row_share: float = 0.01
    layout: Layout = field(default_factory=Layout)
    anyway: bool = False

    @property
    def seed_of_numbers(self) -> int:
        """Of shuffled item numbers."""
        return self.seed if self.numbering_seed is None else self.numbering_seed

    def __post_init__(self) -> None:
        if min(self.min_user_interactions, self.min_item_interactions) < 1:
            raise ValueError("min_user_interactions and min_item_interactions are at least 1")
        if self.max_length < 3:
            raise ValueError("max_length is at least 3: one item to train on, one to validate, one to test")
        if not 0 <= self.max_bad_row_share <= 1:
            raise ValueError("max_bad_row_share lies in 0..1")
        choices = {"user_threshold": UserThreshold, "overlap": Overlap, "ties": Ties, "numbering": Numbering}
        choices["split"] = SplitName
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is one of {', '.join(get_args(kind))}")
        if self.numbering == "first-appearance" and self.numbering_seed is not None:
            raise ValueError("numbering_seed is of shuffled numbers; first appearance has none")
        if self.split != "time" and (self.validation_from or self.test_from):
            raise ValueError("validation_from and test_from are of a split by time")


def prepare(
    inputs: Path | Sequence[str | Path],
    out: Path,
    config: PreparationConfig | None = None,
    *,
    overwrite: bool = False,
    progress: ReadingProgress | None = None,
    name: str | None = None,
    show: Callable[[Preview], None] | None = None,
    extend: Path | None = None,
) -> PreparationReport:
    """
    Write the dataset folder *out* from the interactions in *inputs*; it appears whole or not at all.

    Args:
        inputs: a file, or files, folders and globs, each perhaps with its domain before ``=``; see ``places``.
        out: a folder that does not exist, is empty, or (with *overwrite*) holds a dataset.
        progress: called with a stage's name and the fraction of it that is done.
        name: what people call the dataset; without it, the name of the folder *out*.
        show: called with what was read, before anything is made of it.
        extend: a dataset whose rows are taken first, with its configuration (``models.data.extension``); of *config*
            only the layout of the inputs, the share of bad rows and ``anyway`` are looked at.

    Raises:
        DatasetFormatError: *extend* is no dataset, or an earlier version's.
        InputFormatError, BadRowsError: as ``read_interactions`` does.
        ImplausibleInputError: the input is not what it was taken for; see ``preview``.
        EmptyDatasetError: nothing is left; names the threshold that removed the last rows.
        OutputExistsError: *out* holds something that must not be replaced.
    """
    former = None if extend is None else load_dataset(extend)
    config = config or PreparationConfig()
    if former is not None:
        config = _config_of(former, config)
    report_stage = progress or (lambda _stage, _fraction: None)
    check_output(out, overwrite=overwrite)
    places = [inputs] if isinstance(inputs, Path) else list(inputs)
    source = ", ".join(map(str, places))
    interactions = read_interactions(
        places, config.layout, max_bad_row_share=config.max_bad_row_share, progress=report_stage
    )
    if interactions.num_filtered and not len(interactions.times_N):
        conditions = " and ".join(map(str, config.layout.where))
        raise EmptyDatasetError(f"{source}: no row is left by {conditions}")
    looks = preview(interactions, anyway=config.anyway)
    if show is not None:
        show(looks)
    anchors = None
    if former is not None:
        if config.layout.carried or former.carried is not None:
            raise ConfigurationError("columns are carried along by a preparation of the whole log, not by an extension")
        interactions, anchors = extended(former, interactions)
    ids, rows_read, bad_rows = interactions.ids, interactions.num_rows, interactions.bad_rows
    rows_filtered, time_unit, carried = interactions.num_filtered, interactions.time_unit, interactions.carried
    report_stage("dropping duplicates", 0.0)
    distinct = rows = distinct_rows(
        interactions.users_N, interactions.items_N, interactions.domains_N, interactions.times_N
    )
    del interactions  # as large as the rows themselves
    rows_distinct = len(rows)

    report_stage("applying thresholds", 0.0)
    all_rows = rows.counts(ids.domains)
    rows, removed = apply_thresholds(rows, config, ids.domains, where=f"{source}: of {all_rows}", anchors=anchors)
    before_cut = rows.counts(ids.domains)
    waiting_N = ~np.isin(distinct.positions_N, rows.positions_N)

    report_stage("merging by time", 0.0)
    rows = _ordered(rows, ids, config)
    uncut = len(rows)
    rows = last_rows(rows, config.max_length)
    rows_cut = uncut - len(rows)
    where = f"{source}: after keeping each user's last {config.max_length}, of {before_cut}"
    cut = rows
    rows, removed_after_cut = apply_thresholds(rows, config, ids.domains, where=where, anchors=anchors)
    gone = cut.positions_N[~np.isin(cut.positions_N, rows.positions_N)]
    waiting = distinct.take(waiting_N | np.isin(distinct.positions_N, gone))

    report_stage("numbering items", 0.0)
    vocabulary, token_of_item = _number_items(rows, ids, config, anchors)
    bounds = None
    if config.split == "time":
        bounds = time_bounds(
            TimesInMemory(rows.times_N), validation_from=config.validation_from, test_from=config.test_from
        )
    split = divide(rows, ids.users, token_of_item, bounds)
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
        fingerprint=split.fingerprint(vocabulary),
    )
    report_stage("writing", 0.0)
    with replace_folder(out) as folder:
        _write(folder, bounds is not None, vocabulary, split, rows_as_table(waiting, ids))
        write_bad_rows(folder, bad_rows, with_files=any(row.file for row in bad_rows))
        facts = {
            "name": name or (former and former.manifest.get("name")) or out.name,
            "source": provenance_of(places, time_unit),
            "split": {"name": config.split} if bounds is None else bounds.described(),
        }
        if former is not None:
            facts["extends"] = ancestors_of(former)
            joined_N = joined_rows(former, rows.positions_N)
            pl.DataFrame({"extension": joined_N[split.train_places]}).write_parquet(folder / JOINED)
        if carried:  # in the order of the sequences, as times are
            columns = {name: column.gather(rows.positions_N) for name, column in carried.items()}
            pl.DataFrame(columns).write_parquet(folder / CARRIED)
        write_manifest(folder, facts, config, period_of(split.times_N), report)
    report_stage("writing", 1.0)
    return report


def _config_of(former: Dataset, reading: PreparationConfig) -> PreparationConfig:
    """The configuration of *former*, with what *reading* says of the inputs."""
    kept = {one.name for one in fields(reading)} - {"layout", "max_bad_row_share", "anyway"}
    config = replace(reading, **{key: value for key, value in former.manifest["config"].items() if key in kept})
    split = former.manifest.get("split", {})
    if split.get("name") != "time":
        return config
    dates = {key: repr(split[key]) for key in ("validation_from", "test_from")}
    return replace(config, **dates)  # type: ignore[arg-type]


def _ordered(rows: Rows, ids: Identifiers, config: PreparationConfig) -> Rows:
    """Every user's rows by time; ties by the rule of the configuration."""
    if config.ties == "input":
        return ordered(rows, ties_by_input(rows))
    user_hash, item_hash = _hashes(ids.users, rows.users_N), _hashes(ids.items, rows.items_N)
    return ordered(rows, ties_by_hash(rows, user_hash, item_hash, config.seed))


def _hashes(texts: pl.Series, used: Codes) -> Hashes:
    """A 64-bit hash of each text that *used* points to, uint64 [len(texts)]; the others 0."""
    hashes = np.zeros(len(texts), dtype=np.uint64)
    codes = np.flatnonzero(np.bincount(used, minlength=len(texts)))
    hashes[codes] = text_hashes(texts.gather(codes))
    return hashes


def _shuffled(items: Codes, rows: Rows, ids: Identifiers, config: PreparationConfig) -> Hashes:
    """A sort key per item that is a function of its id and the seed alone."""
    return mixed(_hashes(ids.items, rows.items_N)[items], config.seed_of_numbers)


def _number_items(
    rows: Rows, ids: Identifiers, config: PreparationConfig, anchors: Anchors | None
) -> tuple[Vocabulary, TokenArray]:
    """
    Number the items of each domain by the rule ``numbering``, and map item codes to tokens.

    The items of *anchors* come first, in their order, whether they have rows or not.

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
    if anchors is not None:
        items = np.concatenate([anchors.item_order, items[~anchors.items_I[items]]])
        domain_of_item[anchors.item_order] = anchors.domains_of_items
        items = items[np.argsort(domain_of_item[items], kind="stable")]
    token_of_item = np.zeros(len(ids.items), dtype=TOKENS)
    token_of_item[items] = np.arange(1, len(items) + 1, dtype=TOKENS)
    names = ids.items.gather(items).to_list()
    codes, firsts = np.unique(domain_of_item[items], return_index=True)
    bounds = [*firsts.tolist(), len(items)]
    item_ids = tuple(tuple(names[start:stop]) for start, stop in pairwise(bounds))
    return Vocabulary(tuple(ids.domains.gather(codes).to_list()), item_ids), token_of_item


def _write(folder: Path, by_time: bool, vocabulary: Vocabulary, split: Split, waiting: pl.DataFrame) -> None:
    with DatasetTables(folder, by_time=by_time) as tables:
        tables.add_users(split)
        tables.add_waiting(waiting)
        first = 1
        for domain, item_ids in zip(vocabulary.domains, vocabulary.item_ids, strict=True):
            items = pl.Series(item_ids, dtype=pl.String)
            tables.add_items(first, pl.repeat(domain, len(items), dtype=pl.String, eager=True), items)
            first += len(items)


def check_output(out: Path, *, overwrite: bool) -> None:
    required = frozenset({MANIFEST, *REQUIRED_FILES})
    known = required | {BAD_ROWS, TIMES, LATER, WAITING, CARRIED, JOINED}
    check_replaceable(out, what="a dataset", required=required, ours=lambda name: name in known)
    if (out / MANIFEST).is_file() and not overwrite:
        raise OutputExistsError(f"{out}: holds a dataset already; --overwrite replaces it, or name another folder")
