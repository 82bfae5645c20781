"""
A dataset and newer interactions -> the dataset of both, in which everything old stands where it stood.

Users keep their place and new ones follow; an item keeps its number within its domain and new ones follow there (a
token id moves where an earlier domain grows: bundles and datasets meet by item ids, never by tokens). What the former
dataset had stays, whatever the thresholds say; what it had set aside (``waiting.parquet``) is counted again beside the
new rows. Rows that were there already are dropped as duplicates, so the inputs may be what is new, or the whole log.

Held-out items move on with a user's sequence, and never back: what is held out afterwards was held out before or is
new, so a bundle of the former dataset has not learned from it. The dates of a split by time stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from models.data.dataset import JOINED, WAITING, Dataset
from models.data.reading.interactions import Identifiers, Interactions
from models.data.thresholds import Anchors, Rows
from models.errors import DatasetFormatError

COLUMNS = ("user", "item", "domain", "time")
UNITS = {"seconds": 1e9, "milliseconds": 1e6, "microseconds": 1e3, "nanoseconds": 1.0}


def ancestors_of(former: Dataset) -> list[dict[str, Any]]:
    """What an extension of *former* descends from, the latest first."""
    facts = {key: former.manifest.get(key) for key in ("name", "fingerprint", "created", "period", "source")}
    return [facts, *former.manifest.get("extends", [])]


def rows_as_table(rows: Rows, ids: Identifiers) -> pl.DataFrame:
    """Rows with their names: user, item, domain, time."""
    return pl.DataFrame(
        {
            "user": ids.users.gather(rows.users_N),
            "item": ids.items.gather(rows.items_N),
            "domain": ids.domains.gather(rows.domains_N),
            "time": rows.times_N,
        },
        schema={"user": pl.String, "item": pl.String, "domain": pl.String, "time": pl.Float64},
    )


def joined_by(directory: Path, manifest: Mapping[str, Any], num_items: int) -> npt.NDArray[np.int32]:
    """
    By which extension every training item of a dataset became one, flat, 0 where that is unknown: int32 [*num_items*].

    Raises:
        DatasetFormatError: ``joined.parquet`` is no table of so many rows.
    """
    if JOINED not in manifest["files"]:
        return np.zeros(num_items, dtype=np.int32)
    path = directory / JOINED
    try:
        extensions_N = pl.read_parquet(path, columns=["extension"])["extension"].to_numpy().astype(np.int32)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetFormatError(f"{path}: not a readable table: {error}") from error
    if len(extensions_N) != num_items:
        raise DatasetFormatError(f"{path}: its rows are not one for every training item")
    return extensions_N


def joined_rows(former: Dataset, positions_N: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
    """
    By which extension the rows at these places of ``extended``'s interactions become ones to train on, [N].

    What is held out in *former* has taught nobody: it joins by the extension that is being made, as newer rows do.
    """
    this_one = len(former.manifest.get("extends", ())) + 1
    former_N = np.full(len(former.times.values), this_one, dtype=np.int32)
    places = former.times.places_of_first(former.train.lengths)
    former_N[places] = joined_by(former.directory, former.manifest, len(places))
    joined_N = np.full(len(positions_N), this_one, dtype=np.int32)
    is_held_N = positions_N < len(former_N)
    joined_N[is_held_N] = former_N[positions_N[is_held_N]]
    return joined_N


def extended(former: Dataset, fresh: Interactions) -> tuple[Interactions, Anchors]:
    """
    The interactions of *former*, user by user, and then *fresh*, and what of them must stay.

    Raises:
        DatasetFormatError: *former* is of a version that kept no times or no rows that wait.
    """
    held, waiting = _held_rows(former), _waiting_rows(former)
    factor = UNITS[fresh.time_unit] / UNITS[former.manifest["source"]["time_unit"]]
    rows = Rows(fresh.users_N, fresh.items_N, fresh.domains_N, fresh.times_N * factor, np.zeros(0, np.uint32))
    fresh_table = rows_as_table(rows, fresh.ids)
    # An item has one domain: the one that it had first
    claims = pl.concat([held, waiting, fresh_table]).group_by("item", maintain_order=True)
    owner = claims.agg(pl.col("domain").first().alias("owner"))
    both = pl.concat([held, waiting, fresh_table]).join(owner, on="item", maintain_order="left")
    table = both.filter(pl.col("domain") == pl.col("owner")).drop("owner")
    claimed_away = len(both) - len(table)

    vocabulary = former.vocabulary
    former_items = [item for items in vocabulary.item_ids for item in items]
    ids = Identifiers(
        _in_order(former.user_ids, table["user"]),
        _in_order(former_items, table["item"]),
        _in_order(vocabulary.domains, table["domain"]),
    )
    interactions = Interactions(
        ids=ids,
        users_N=_codes(table["user"], ids.users),
        items_N=_codes(table["item"], ids.items),
        domains_N=_codes(table["domain"], ids.domains),
        times_N=table["time"].to_numpy(),
        num_rows=len(held) + len(waiting) + fresh.num_rows,
        bad_rows=fresh.bad_rows,
        num_filtered=fresh.num_filtered + claimed_away,
        notes=fresh.notes,
        time_unit=former.manifest["source"]["time_unit"],
    )
    lengths = [len(items) for items in vocabulary.item_ids]
    num_users, num_domains = len(ids.users), len(ids.domains)
    cells = np.zeros(num_users * num_domains, dtype=np.bool_)
    held_users, held_domains = _codes(held["user"], ids.users), _codes(held["domain"], ids.domains)
    cells[held_users.astype(np.int64) * num_domains + held_domains] = True
    return interactions, Anchors(
        users_U=np.arange(num_users) < len(former.user_ids),
        items_I=np.arange(len(ids.items)) < len(former_items),
        cells_UD=cells,
        item_order=np.arange(len(former_items), dtype=np.int32),
        domains_of_items=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
    )


def _held_rows(former: Dataset) -> pl.DataFrame:
    """Every interaction of the dataset, held-out ones too."""
    complete, vocabulary = former.complete, former.vocabulary
    users = np.repeat(np.arange(len(former.user_ids)), complete.lengths)
    names = pl.Series([item for items in vocabulary.item_ids for item in items], dtype=pl.String)
    domains = pl.Series(list(vocabulary.domains), dtype=pl.String)
    return pl.DataFrame(
        {
            "user": pl.Series(list(former.user_ids), dtype=pl.String).gather(users),
            "item": names.gather(complete.token_ids - 1),
            "domain": domains.gather(vocabulary.domain_of_tokens(complete.token_ids)),
            "time": former.times.of_first(complete.lengths),
        }
    )


def _waiting_rows(former: Dataset) -> pl.DataFrame:
    path = former.directory / WAITING
    if WAITING not in former.manifest["files"]:
        raise DatasetFormatError(
            f"{former.directory}: prepared by an earlier version, which did not keep the rows that it set aside: "
            "`taesar prepare` its whole log again"
        )
    try:
        return pl.read_parquet(path, columns=list(COLUMNS))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DatasetFormatError(f"{path}: not a readable table of rows: {error}") from error


def _in_order(first: tuple[str, ...] | list[str], values: pl.Series) -> pl.Series:
    """*first*, then what else *values* hold, sorted."""
    known = pl.Series(list(first), dtype=pl.String)
    others = values.unique().sort()
    return pl.concat([known, others.filter(~others.is_in(known.implode()))])


def _codes(values: pl.Series, known: pl.Series) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The place of every value in *known*."""
    places = pl.DataFrame({"value": known, "code": np.arange(len(known), dtype=np.int32)})
    joined = pl.DataFrame({"value": values}).join(places, on="value", how="left", maintain_order="left")
    return joined["code"].to_numpy().astype(np.int32)
