"""
The composite dataset of one target domain: original and regenerated sequences together (eq. 6), and what was mapped.

Folder layout:
    composite.parquet   user_id, origin (original | regenerated), item_ids, token_ids: one row per sequence
    interactions/       part-00000.parquet, ...: every item that stays, with its time and where it comes from
    <target>.inter      the sequences for RecBole: user_id:token, item_id_list:token_seq, item_id:token
    counts.parquet      user_id, kept, replaced, deleted, unknown, unknown_kept, truncated: one row per user
    decisions.parquet   what was decided for every user, for the next result to take over (``decisions``)
    mapping.parquet     source_domain, source_item, target_item (null: deleted), count, mean_score, share
    summary.json        target, rule, versions, totals, seconds, SHA-256 of composite.parquet and mapping.parquet
    <format>/ or interactions.<suffix>   what was asked for besides (models.exports)

By default only ``Dataset.train`` is read, so no held-out item can enter; ``everything`` reads all, for production. Rows
come user by user in dataset order.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from models.bundle import Bundle
from models.composite.decisions import DECISIONS, KeptDecisions, write_decisions
from models.composite.lineage import lineage_of
from models.composite.mapping import mapping_table
from models.composite.mixed_log import MixedLog, read_log
from models.composite.regenerated_rows import (
    COUNTS,
    ORIGINAL,
    CompositeRow,
    RegeneratedUser,
    composite_rows,
    interaction_schema_of,
    interaction_tables,
    regenerated_user,
)
from models.data.dataset import Dataset, Sequences, TokenArray, sha256_of
from models.decoding.regenerator import Regenerator
from models.decoding.rules import DEFAULT_DIAL, RULES_VERSION, Dial, Rule
from models.errors import BundleMismatchError, ConfigurationError
from models.exports.as_inter import inter_text
from models.exports.as_parquet import write_parts
from models.exports.as_recbole import file_name
from models.exports.encoding import HeldOutItem, TrainingData
from models.exports.export_formats import FORMATS, FormatName, load_format
from models.files import check_replaceable, replace_folder

Which = Literal["training", "all"]

SUMMARY = "summary.json"
COMPOSITE = "composite.parquet"
INTERACTIONS = "interactions"
COUNTED = "counts.parquet"
MAPPING = "mapping.parquet"
# What an evaluation reads.
CHECKED_FILES = (COMPOSITE, MAPPING)
INTER_SUFFIX = ".inter"
# Users regenerated between two progress reports.
USERS_PER_REPORT = 512


@dataclass(frozen=True)
class CompositeSummary:
    """
    Totals over all users; kept + replaced + deleted + unknown + unknown_kept + truncated is the interactions read.

    ``users_taken_over`` had not changed since an earlier result. ``interactions`` says what was read: "training" leaves
    every user's last two out, which are held out.
    """

    target: str
    rule: Rule
    dial: Dial
    bundle_version: str
    dataset_fingerprint: str
    interactions: Which
    users: int
    users_taken_over: int
    original_rows: int
    regenerated_rows: int
    kept: int
    replaced: int
    deleted: int
    unknown: int
    unknown_kept: int
    truncated: int
    has_times: bool
    seconds: float
    rules_version: int = RULES_VERSION


@dataclass(frozen=True)
class Made:
    """All that is written: a log, what became of its users, and the rows of the composite."""

    log: MixedLog
    users: Sequence[RegeneratedUser]
    rows: Sequence[CompositeRow]


def write_composite(
    dataset: Dataset,
    bundle: Bundle,
    *,
    target: str,
    rule: Rule,
    dial: Dial = DEFAULT_DIAL,
    out: Path,
    interactions: Which = "training",
    exports: Sequence[FormatName] = (),
    prefixes: bool = False,
    on_users: Callable[[int, int], None] | None = None,
    previous: Path | None = None,
) -> CompositeSummary:
    """
    Regenerate every sequence for *target* and write the folder described at the top.

    Args:
        dataset: prepared dataset. With "training" the one that the bundle was trained on; with "all" it may be a newer
            one: what the bundle does not know stays in place (target domain) or is left out (others), counted.
        bundle: base and experts.
        target: name of the target domain.
        rule: decoding rule.
        dial: whether the bundle's guard of the target is kept to.
        out: the folder to write; an earlier composite there is replaced, anything else refused.
        interactions: "training" leaves out what is held out, for evaluation; "all" takes everything, for production.
        exports: further formats to write.
        prefixes: whether the rows of an export that predicts only last items stand once for every item.
        on_users: if given, called with (users done, users in all) as work goes on.
        previous: an earlier result, *out* itself where none is given; of the same bundle, rule and dial, its decisions
            are taken over for all users whose sequence is the same.

    Raises:
        UnknownDomainError: no such domain.
        BundleMismatchError: "training", and the bundle was trained on another dataset, another split of it, or, as a
            refit bundle, on what is held out.
        OutputExistsError: *out* holds something that is not a composite.
        ConfigurationError: an export would take the name of another file.
    """
    started = time.perf_counter()
    if interactions == "training":
        check_trained_on(bundle, dataset)
    bundle.vocabulary.token_range(target)
    if "inter" in exports and inter_file(target) == f"{INTERACTIONS}{FORMATS['inter'].suffix}":
        raise ConfigurationError(f"--export inter and the sequences of target {target!r} want one name for two files")
    required = frozenset({COMPOSITE, COUNTED, MAPPING, SUMMARY})
    check_replaceable(out, what="a composite dataset", required=required, ours=lambda name: _is_ours(name, required))
    log = read_log(dataset, bundle.vocabulary, target, everything=interactions == "all")
    regenerator = Regenerator(bundle, rule, dial=dial)
    kept = _kept_decisions(previous or out, bundle, target=target, rule=rule, dial=dial)
    users, taken_over = regenerate_log(log, regenerator, on_users, kept)
    reads = [log.history(user, regenerator.max_items).token_ids for user in range(len(users))]
    made = Made(log, users, composite_rows(log, users))
    counts_UC = np.asarray([user.counts for user in users], dtype=np.int64).reshape(-1, len(COUNTS))
    original_rows = sum(row.origin == ORIGINAL for row in made.rows)
    summary = CompositeSummary(
        target=target,
        rule=rule,
        dial=dial,
        bundle_version=bundle.version,
        dataset_fingerprint=dataset.fingerprint,
        interactions=interactions,
        users=len(dataset.user_ids),
        users_taken_over=taken_over,
        original_rows=original_rows,
        regenerated_rows=len(made.rows) - original_rows,
        **dict(zip(COUNTS, counts_UC.sum(axis=0).tolist(), strict=True)),
        has_times=dataset.has_times,
        seconds=round(time.perf_counter() - started, 3),
    )
    # Read where an export wants them, and never to make the training rows
    is_held_out = interactions == "training" and bool(exports)
    validation = _held_out(dataset, target, dataset.train, dataset.validation) if is_held_out else []
    test = _held_out(dataset, target, dataset.before_test, dataset.test) if is_held_out else []
    with replace_folder(out) as folder:
        _write_folder(folder, made, counts_UC, summary, lineage_of(bundle, dataset))
        write_decisions(folder / DECISIONS, log.user_ids, reads, [user.result for user in users])
        schema = interaction_schema_of(log)
        write_parts(folder / INTERACTIONS, schema, interaction_tables(log, users, schema))
        for name in exports:
            data = TrainingData(
                target=target,
                rows=lambda: [(log.user_ids[row.user], log.item_ids_of(row.token_ids)) for row in made.rows],
                schema=schema,
                interactions=lambda: interaction_tables(log, users, schema),
                validation=validation,
                test=test,
                prefixes=prefixes,
                directory=out / name,
            )
            _write_export(folder, name, data)
    return summary


def ensure_composite(
    dataset: Dataset,
    bundle: Bundle,
    *,
    target: str,
    rule: Rule,
    dial: Dial = DEFAULT_DIAL,
    out: Path,
    on_users: Callable[[int, int], None] | None = None,
) -> None:
    """``write_composite`` of the training interactions, unless *out* already holds what it would write."""
    made_of = _made_by(bundle, target=target, rule=rule, dial=dial) | {
        "dataset_fingerprint": dataset.fingerprint,
        "interactions": "training",
    }
    if not _holds(out, made_of):
        write_composite(dataset, bundle, target=target, rule=rule, dial=dial, out=out, on_users=on_users)


def _made_by(bundle: Bundle, *, target: str, rule: Rule, dial: Dial) -> dict[str, object]:
    """What decisions depend on beside the sequence, as a summary names it."""
    return {
        "target": target,
        "rule": rule,
        "dial": dial,
        "bundle_version": bundle.version,
        "rules_version": RULES_VERSION,
    }


def _holds(folder: Path, made_of: Mapping[str, object]) -> bool:
    """Whether *folder* holds a result with these entries in its summary."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(summary, dict) and made_of.items() <= summary.items()


def check_trained_on(bundle: Bundle, dataset: Dataset) -> None:
    """
    Whether *bundle* was trained on the training interactions of this very dataset and split, and on no others.

    Raises:
        BundleMismatchError: it was not.
    """
    if bundle.provenance.get("dataset_fingerprint") != dataset.fingerprint:
        raise BundleMismatchError(
            f"{bundle.directory}: not trained on dataset {dataset.directory}; with other items it can do nothing for "
            "it, and with another split it may have seen the items held out here. For production, --interactions all "
            "takes what it knows"
        )
    if bundle.provenance.get("refit"):
        raise BundleMismatchError(
            f"{bundle.directory}: trained on the held-out items, too (--refit), so it can serve and make production "
            "data (--interactions all), but nothing that is evaluated on those items"
        )


def _is_ours(name: str, required: frozenset[str]) -> bool:
    exported = {f"{INTERACTIONS}{entry.suffix}" for entry in FORMATS.values() if entry.suffix}
    return name in required | exported | set(FORMATS) | {INTERACTIONS, DECISIONS} or name.endswith(INTER_SUFFIX)


def _kept_decisions(folder: Path, bundle: Bundle, *, target: str, rule: Rule, dial: Dial) -> KeptDecisions:
    """The decisions of the result in *folder*, if they would be the same today."""
    unchanged = _holds(folder, _made_by(bundle, target=target, rule=rule, dial=dial))
    return KeptDecisions.read(folder) if unchanged else KeptDecisions({})


def regenerate_log(
    log: MixedLog,
    regenerator: Regenerator,
    on_users: Callable[[int, int], None] | None = None,
    kept: KeptDecisions | None = None,
) -> tuple[list[RegeneratedUser], int]:
    """
    Every sequence of *log* as a training row, in order, and how many of them were *kept* from an earlier result.

    *on_users* hears of (users done, users in all).
    """
    total, taken_over = len(log.sequences), 0
    regenerated: list[RegeneratedUser] = []
    while len(regenerated) < total:
        users = range(len(regenerated), min(total, len(regenerated) + USERS_PER_REPORT))
        read: list[TokenArray] = [log.history(user, regenerator.max_items).token_ids for user in users]
        found = [
            None if kept is None else kept.of(log.user_ids[user], one) for user, one in zip(users, read, strict=True)
        ]
        changed = [one for one, known in zip(read, found, strict=True) if known is None]
        anew = iter(regenerator.regenerate(changed, log.target, training_rows=True))
        taken_over += len(read) - len(changed)
        regenerated += [
            regenerated_user(log, user, regenerator.max_items, next(anew) if known is None else known)
            for user, known in zip(users, found, strict=True)
        ]
        if on_users is not None:
            on_users(len(regenerated), total)
    return regenerated, taken_over


def _held_out(dataset: Dataset, target: str, before: Sequences, items_U: TokenArray) -> list[HeldOutItem]:
    """The held-out items that are of *target*, with what came *before* them."""
    target_range = dataset.vocabulary.token_range(target)
    found = []
    for user in np.flatnonzero(target_range.mask(items_U)).tolist():
        history = before[user][target_range.mask(before[user])]
        time_of = float(dataset.times[user][len(before[user])]) if dataset.has_times else None
        [item] = dataset.vocabulary.item_ids_of([int(items_U[user])])
        found.append(HeldOutItem(dataset.user_ids[user], dataset.vocabulary.item_ids_of(history), item, time_of))
    return found


def _write_export(folder: Path, name: FormatName, data: TrainingData) -> None:
    export = load_format(name)
    if export.folder is not None:
        (folder / name).mkdir()
        export.folder(data, folder / name)
        return
    assert export.interactions is not None
    with (folder / f"{INTERACTIONS}{FORMATS[name].suffix}").open("wb") as file:
        for part in export.interactions(data.schema, data.interactions()):
            file.write(part)


def _write_folder(
    folder: Path, made: Made, counts_UC: npt.NDArray[np.int64], summary: CompositeSummary, lineage: Mapping[str, object]
) -> None:
    log, rows = made.log, made.rows
    item_ids = [log.item_ids_of(row.token_ids) for row in rows]
    users = [log.user_ids[row.user] for row in rows]
    pl.DataFrame(
        {
            "user_id": users,
            "origin": [row.origin for row in rows],
            "item_ids": item_ids,
            # Tokens beyond the vocabulary are nobody else's
            "token_ids": [None if log.newer_items else row.token_ids.tolist() for row in rows],
        },
        schema={
            "user_id": pl.String,
            "origin": pl.String,
            "item_ids": pl.List(pl.String),
            "token_ids": pl.List(pl.Int32),
        },
    ).write_parquet(folder / COMPOSITE)
    (folder / inter_file(summary.target)).write_text(inter_text(users, item_ids), encoding="utf-8")
    pl.DataFrame({"user_id": list(log.user_ids), **dict(zip(COUNTS, counts_UC.T, strict=True))}).write_parquet(
        folder / COUNTED
    )
    mapping = mapping_table([user.result for user in made.users], log.vocabulary)
    mapping.write_parquet(folder / MAPPING)
    content = asdict(summary) | {
        "lineage": lineage,
        "files": {name: sha256_of(folder / name) for name in CHECKED_FILES},
    }
    (folder / SUMMARY).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def inter_file(target: str) -> str:
    """
    Name of the RecBole file of a target's sequences.

    >>> inter_file("food"), inter_file("Food/Drink")
    ('food.inter', 'Food%2FDrink.inter')
    """
    return f"{file_name(target)}{INTER_SUFFIX}"
