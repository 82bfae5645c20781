"""
The composite dataset of one target domain: original and regenerated sequences together (eq. 6), and what was mapped.

Folder layout:
    composite.parquet   user_id, origin (original | regenerated), item_ids, token_ids: one row per sequence
    <target>.inter      the same rows for RecBole: user_id:token, item_id_list:token_seq, item_id:token
    counts.parquet      user_id, kept, replaced, deleted: one row per user
    mapping.parquet     source_domain, source_item, target_item (null: deleted), count, mean_score, share
    summary.json        target, rule, versions, totals, seconds, SHA-256 of composite.parquet and mapping.parquet

Only ``Dataset.train`` is read, so no held-out item can enter. Rows come user by user in dataset order, the original
first. A regenerated row holds a replacement and differs from the original row by more than repeats; else the user has
the original row alone. Rows of fewer than two items are left out.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import polars as pl

from models.bundle import Bundle
from models.data.dataset import Dataset, TokenArray, sha256_of
from models.decoding.regenerator import Regenerated, Regenerator, without_repeats
from models.decoding.rules import RULES_VERSION, Rule
from models.errors import BundleMismatchError
from models.files import check_replaceable, replace_folder
from models.vocabulary import TokenRange, Vocabulary

SUMMARY = "summary.json"
COMPOSITE = "composite.parquet"
COUNTS = "counts.parquet"
MAPPING = "mapping.parquet"
# What an evaluation reads.
CHECKED_FILES = (COMPOSITE, MAPPING)
INTER_SUFFIX = ".inter"
INTER_HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
# What pandas, with which RecBole reads, takes for a missing value.
MISSING_WORDS = frozenset(
    "#N/A #NA -1.#IND -1.#QNAN -NaN -nan 1.#IND 1.#QNAN <NA> N/A NA NULL NaN None n/a nan null".split()  # noqa: SIM905
)
# Users regenerated between two progress reports.
USERS_PER_REPORT = 512
# A row needs a history and an item to predict.
SHORTEST_ROW = 2

ORIGINAL, REGENERATED = "original", "regenerated"


@dataclass(frozen=True)
class CompositeSummary:
    """Totals over all users; ``kept + replaced + deleted`` is the number of training interactions read."""

    target: str
    rule: Rule
    bundle_version: str
    dataset_fingerprint: str
    users: int
    original_rows: int
    regenerated_rows: int
    kept: int
    replaced: int
    deleted: int
    seconds: float
    rules_version: int = RULES_VERSION


@dataclass(frozen=True)
class CompositeRow:
    """One sequence of the composite."""

    user: int
    origin: str
    token_ids: TokenArray


def write_composite(
    dataset: Dataset,
    bundle: Bundle,
    *,
    target: str,
    rule: Rule,
    out: Path,
    on_users: Callable[[int, int], None] | None = None,
) -> CompositeSummary:
    """
    Regenerate every training sequence for *target* and write the folder described at the top.

    Args:
        dataset: prepared dataset; its vocabulary must be the bundle's.
        bundle: base and experts, trained on this very dataset.
        target: name of the target domain.
        rule: decoding rule.
        out: the folder to write; an earlier composite there is replaced, anything else refused.
        on_users: if given, called with (users done, users in all) as work goes on.

    Raises:
        UnknownDomainError: no such domain.
        BundleMismatchError: the bundle was trained on another dataset or another split of it.
        OutputExistsError: *out* holds something that is not a composite.
    """
    started = time.perf_counter()
    check_trained_on(bundle, dataset)
    target_range = dataset.vocabulary.token_range(target)
    parts = frozenset({COMPOSITE, COUNTS, MAPPING, SUMMARY})
    check_replaceable(
        out, what="a composite dataset", required=parts, ours=lambda name: name in parts or name.endswith(INTER_SUFFIX)
    )
    regenerated = _regenerate_all(dataset, Regenerator(bundle, rule), target, on_users)
    rows = composite_rows(dataset.train, regenerated, target_range)
    counts = np.asarray([(r.kept, r.replaced, r.deleted) for r in regenerated], dtype=np.int64).reshape(-1, 3)
    original_rows = sum(row.origin == ORIGINAL for row in rows)
    summary = CompositeSummary(
        target=target,
        rule=rule,
        bundle_version=bundle.version,
        dataset_fingerprint=dataset.fingerprint,
        users=len(dataset.user_ids),
        original_rows=original_rows,
        regenerated_rows=len(rows) - original_rows,
        kept=int(counts[:, 0].sum()),
        replaced=int(counts[:, 1].sum()),
        deleted=int(counts[:, 2].sum()),
        seconds=round(time.perf_counter() - started, 3),
    )
    _write_folder(out, dataset, rows, counts, mapping_table(regenerated, dataset.vocabulary), summary)
    return summary


def check_trained_on(bundle: Bundle, dataset: Dataset) -> None:
    """
    Whether *bundle* was trained on this very dataset and split.

    Raises:
        BundleMismatchError: it was not.
    """
    if bundle.provenance.get("dataset_fingerprint") != dataset.fingerprint:
        raise BundleMismatchError(
            f"{bundle.directory}: not trained on dataset {dataset.directory}; with other items it can do nothing for "
            "it, and with another split it may have seen the items held out here"
        )


def composite_rows(
    train: Iterable[TokenArray], regenerated: Iterable[Regenerated], target_range: TokenRange
) -> list[CompositeRow]:
    """The rows of every user in order, original first; see the top of this file for which there are."""
    rows = []
    for user, (sequence, result) in enumerate(zip(train, regenerated, strict=True)):
        original = sequence[target_range.mask(sequence)]
        if len(original) >= SHORTEST_ROW:
            rows.append(CompositeRow(user, ORIGINAL, original))
        says_new = result.replaced > 0 and not np.array_equal(result.token_ids, without_repeats(original))
        if says_new and len(result.token_ids) >= SHORTEST_ROW:
            rows.append(CompositeRow(user, REGENERATED, result.token_ids))
    return rows


def mapping_table(regenerated: Sequence[Regenerated], vocabulary: Vocabulary) -> pl.DataFrame:
    """
    The source -> target dictionary with counts.

    Returns:
        Columns source_domain, source_item, target_item (null: deleted), count, mean_score (null where no decision
        was scored: at position 0, and of what rule ``anticipate`` deletes), share (count over all
        decisions of the source item), sorted by source domain and
        item, then falling count.
    """
    steps = [result.steps for result in regenerated]
    decisions = pl.DataFrame(
        {
            "source": _concatenate([step.source_tokens for step in steps], np.int32),
            "target": _concatenate([step.replacements for step in steps], np.int32),
            "score": _concatenate([step.score for step in steps], np.float32),
        }
    )
    names = pl.DataFrame(
        {
            "token": np.arange(1, vocabulary.num_tokens, dtype=np.int32),
            "domain": [d for d, ids in zip(vocabulary.domains, vocabulary.item_ids, strict=True) for _ in ids],
            "item": [item for ids in vocabulary.item_ids for item in ids],
        }
    )
    return (
        decisions.group_by("source", "target")
        .agg(
            pl.len().cast(pl.Int64).alias("count"),
            pl.col("score").cast(pl.Float64).fill_nan(None).mean().alias("mean_score"),
        )
        .with_columns((pl.col("count") / pl.col("count").sum().over("source")).alias("share"))
        .join(names, left_on="source", right_on="token")
        .join(names.select("token", target_item="item"), left_on="target", right_on="token", how="left")
        .sort(["domain", "item", "count", "target"], descending=[False, False, True, False])
        .select(
            pl.col("domain").alias("source_domain"),
            pl.col("item").alias("source_item"),
            "target_item",
            "count",
            "mean_score",
            "share",
        )
    )


def _regenerate_all(
    dataset: Dataset, regenerator: Regenerator, target: str, on_users: Callable[[int, int], None] | None
) -> list[Regenerated]:
    total = len(dataset.train)
    regenerated: list[Regenerated] = []
    while len(regenerated) < total:
        users = range(len(regenerated), min(total, len(regenerated) + USERS_PER_REPORT))
        regenerated += regenerator.regenerate([dataset.train[user] for user in users], target, training_rows=True)
        if on_users is not None:
            on_users(len(regenerated), total)
    return regenerated


def _write_folder(
    out: Path,
    dataset: Dataset,
    rows: Sequence[CompositeRow],
    counts_U3: npt.NDArray[np.int64],
    mapping: pl.DataFrame,
    summary: CompositeSummary,
) -> None:
    with replace_folder(out) as staging:
        item_ids = [dataset.vocabulary.item_ids_of(row.token_ids) for row in rows]
        users = [dataset.user_ids[row.user] for row in rows]
        pl.DataFrame(
            {
                "user_id": users,
                "origin": [row.origin for row in rows],
                "item_ids": item_ids,
                "token_ids": [row.token_ids.tolist() for row in rows],
            },
            schema={
                "user_id": pl.String,
                "origin": pl.String,
                "item_ids": pl.List(pl.String),
                "token_ids": pl.List(pl.Int32),
            },
        ).write_parquet(staging / COMPOSITE)
        (staging / inter_file(summary.target)).write_text(inter_text(users, item_ids), encoding="utf-8")
        pl.DataFrame(
            {"user_id": list(dataset.user_ids), **dict(zip(("kept", "replaced", "deleted"), counts_U3.T, strict=True))}
        ).write_parquet(staging / COUNTS)
        mapping.write_parquet(staging / MAPPING)
        content = asdict(summary) | {"files": {name: sha256_of(staging / name) for name in CHECKED_FILES}}
        (staging / SUMMARY).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def inter_file(target: str) -> str:
    """
    Name of the RecBole file of a target: a domain may be called anything, a file not.

    >>> inter_file("food"), inter_file("Food/Drink"), inter_file("..")
    ('food.inter', 'Food%2FDrink.inter', '...inter')
    """
    return f"{quote(target, safe=' ')}{INTER_SUFFIX}"


def inter_text(users: Iterable[str], item_ids: Iterable[Sequence[str]]) -> str:
    r"""
    Rows as a RecBole ``.inter`` file: each row's last item is the one to predict.

    Tabs and spaces separate fields and items there, and RecBole's reader takes quotes for quotes and words such as NA
    for missing values, so in identifiers white space, quotes, % and the first letter of such a word are
    percent-encoded; ``urllib.parse.unquote`` gives them back.

    >>> inter_text(["u 1"], [["a", 'b"', "NA"]]).splitlines()[1].split("\t")
    ['u%201', 'a b%22', '%4EA']
    """
    lines = [
        f"{_field(user)}\t{' '.join(map(_field, items[:-1]))}\t{_field(items[-1])}\n"
        for user, items in zip(users, item_ids, strict=True)
    ]
    return INTER_HEADER + "".join(lines)


def _field(identifier: str) -> str:
    if identifier in MISSING_WORDS:
        return f"%{ord(identifier[0]):02X}{identifier[1:]}"
    return re.sub(r'[\s%"]', lambda match: quote(match.group()), identifier)


def _concatenate(arrays: Sequence[npt.NDArray[np.generic]], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(0, dtype=dtype)
