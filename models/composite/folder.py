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

The work is done in parts, ranges of users, each of which is written to a folder beside the composite as soon as it is
made (``work_folder``); at the end they are put together (``assembly``). No more than one part is held, by any engine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from time import perf_counter
from typing import Literal

import numpy as np

from models.bundle import Bundle, BundleDescription
from models.composite.assembly import (
    COMPOSITE,
    COUNTED,
    INTERACTIONS,
    MAPPING,
    PASSES,
    FinishedParts,
    write_files,
)
from models.composite.decisions import DECISIONS
from models.composite.engines import Engine, LocalEngine
from models.composite.lineage import lineage_of
from models.composite.mapping import SourceOrder
from models.composite.part_results import Part, PartRecipe
from models.composite.regenerated_rows import COUNTS
from models.composite.work_folder import claimed, finished, identity_of, work_folder_of
from models.data.dataset import DatasetDescription, read_users, sha256_of
from models.data.user_ranges import user_ranges
from models.decoding.rules import DEFAULT_DIAL, RULES_VERSION, Dial, Rule
from models.errors import BundleMismatchError, ConfigurationError
from models.exports.as_recbole import file_name
from models.exports.encoding import HeldOutItem, TrainingData
from models.exports.export_formats import FORMATS, FormatName, load_format
from models.files import check_replaceable, replace_folder

Which = Literal["training", "all"]

SUMMARY = "summary.json"
# What an evaluation reads.
CHECKED_FILES = (COMPOSITE, MAPPING)
INTER_SUFFIX = ".inter"


@dataclass(frozen=True)
class PartSize:
    """
    Where a dataset is cut into parts: at so many users or interactions, whichever comes first.

    A part's interactions, as Python holds them while it is made, take about half a kilobyte each.
    """

    users: int = 1 << 14
    interactions: int = 1 << 20


DEFAULT_PART_SIZE = PartSize()


@dataclass(frozen=True)
class CompositeProgress:
    """
    Who hears how the work goes on.

    Args:
        on_users: (users done, users in all), those of an earlier run included.
        on_files: (passes through parts done, passes in all), while parts are put together.
        on_note: a sentence about what was found.
    """

    on_users: Callable[[int, int], None] = lambda _done, _total: None
    on_files: Callable[[int, int], None] = lambda _done, _total: None
    on_note: Callable[[str], None] = lambda _note: None


@dataclass(frozen=True)
class CompositeSummary:
    """
    Totals over all users; kept + replaced + deleted + unknown + unknown_kept + truncated is the interactions read.

    ``users_taken_over`` had not changed since an earlier result. ``interactions`` says what was read: "training" leaves
    every user's last two out, which are held out. Of ``parts``, ``parts_resumed`` were made by a run that did not end.
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
    parts: int
    parts_resumed: int
    rules_version: int = RULES_VERSION


def write_composite(
    dataset: DatasetDescription,
    bundle: BundleDescription,
    *,
    target: str,
    rule: Rule,
    dial: Dial = DEFAULT_DIAL,
    out: Path,
    interactions: Which = "training",
    exports: Sequence[FormatName] = (),
    prefixes: bool = False,
    progress: CompositeProgress | None = None,
    previous: Path | None = None,
    engine: Engine | None = None,
    part_size: PartSize = DEFAULT_PART_SIZE,
) -> CompositeSummary:
    """
    Regenerate every sequence for *target* and write the folder described at the top.

    A run that was ended from outside leaves its parts; the same call goes on from them. What is written does not depend
    on *engine*, on *part_size*, nor on how often the work was interrupted.

    Args:
        dataset: prepared dataset; its sequences are read from its folder. With "training" the one that the bundle was
            trained on; with "all" it may be a newer one: what the bundle does not know stays in place (target domain)
            or is left out (others), counted.
        bundle: base and experts, without its networks where the engine loads them itself.
        target: name of the target domain.
        rule: decoding rule.
        dial: whether the bundle's guard of the target is kept to.
        out: the folder to write; an earlier composite there is replaced, anything else refused.
        interactions: "training" leaves out what is held out, for evaluation; "all" takes everything, for production.
        exports: further formats to write.
        prefixes: whether the rows of an export that predicts only last items stand once for every item.
        progress: who hears of it.
        previous: an earlier result, *out* itself where none is given; of the same bundle, rule and dial, its decisions
            are taken over for all users whose sequence is the same.
        engine: who makes the parts; this process where none is given.
        part_size: of the parts.

    Raises:
        UnknownDomainError: no such domain.
        BundleMismatchError: "training", and the bundle was trained on another dataset, another split of it, or, as a
            refit bundle, on what is held out.
        OutputExistsError: *out* holds something that is not a composite, or another run is writing it.
        ConfigurationError: an export would take the name of another file.
        EngineError: the engine cannot start, or a part fails again and again.
    """
    started = perf_counter()
    heard = progress or CompositeProgress()
    if interactions == "training":
        check_trained_on(bundle, dataset)
    bundle.vocabulary.token_range(target)
    if "inter" in exports and inter_file(target) == f"{INTERACTIONS}{FORMATS['inter'].suffix}":
        raise ConfigurationError(f"--export inter and the sequences of target {target!r} want one name for two files")
    required = frozenset({COMPOSITE, COUNTED, MAPPING, SUMMARY})
    check_replaceable(out, what="a composite dataset", required=required, ours=lambda name: _is_ours(name, required))
    ranges = user_ranges(dataset, max_users=part_size.users, max_interactions=part_size.interactions)
    parts = [Part(number, users) for number, users in enumerate(ranges)]
    earlier = previous or out
    recipe = PartRecipe(
        dataset=dataset,
        bundle=bundle,
        target=target,
        rule=rule,
        dial=dial,
        everything=interactions == "all",
        kept=earlier if _holds(earlier, _made_by(bundle, target=target, rule=rule, dial=dial)) else None,
        work=work_folder_of(out).absolute(),
    )
    with claimed(recipe.work, identity_of(recipe, parts)) as differing:
        resumed = _make_parts(recipe, parts, engine or LocalEngine(), heard, differing)
        totals = list(finished(recipe.work, parts).values())
        counts = np.asarray([part.counts for part in totals], dtype=np.int64).reshape(-1, len(COUNTS)).sum(axis=0)
        summary = CompositeSummary(
            target=target,
            rule=rule,
            dial=dial,
            bundle_version=bundle.version,
            dataset_fingerprint=dataset.fingerprint,
            interactions=interactions,
            users=sum(part.users for part in totals),
            users_taken_over=sum(part.users_taken_over for part in totals),
            original_rows=sum(part.original_rows for part in totals),
            regenerated_rows=sum(part.regenerated_rows for part in totals),
            **dict(zip(COUNTS, counts.tolist(), strict=True)),
            has_times=dataset.has_times,
            seconds=round(perf_counter() - started, 3),
            parts=len(parts),
            parts_resumed=resumed,
        )
        _put_together(recipe, parts, summary, out, exports, heard, prefixes=prefixes)
        rmtree(recipe.work)
    return summary


def ensure_composite(
    dataset: DatasetDescription,
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
        progress = None if on_users is None else CompositeProgress(on_users=on_users)
        write_composite(dataset, bundle, target=target, rule=rule, dial=dial, out=out, progress=progress)


def _made_by(bundle: BundleDescription, *, target: str, rule: Rule, dial: Dial) -> dict[str, object]:
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


def check_trained_on(bundle: BundleDescription, dataset: DatasetDescription) -> None:
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


def _make_parts(
    recipe: PartRecipe, parts: Sequence[Part], engine: Engine, heard: CompositeProgress, differing: Sequence[str]
) -> int:
    """Make the parts that are not there; how many were."""
    there = finished(recipe.work, parts)
    if differing:
        heard.on_note(
            f"{recipe.work} held parts of an earlier run that differs in {', '.join(differing)}: not taken over"
        )
    elif there:
        heard.on_note(f"going on from {recipe.work}: {len(there):,} of {len(parts):,} parts are made")
    total = sum(len(part.users) for part in parts)
    before = sum(len(part.users) for part in parts if part.number in there)
    heard.on_users(before, total)
    missing = [part for part in parts if part.number not in there]
    for done in engine.make(recipe, missing) if missing else ():
        heard.on_users(before + done, total)
    return len(there)


def _put_together(
    recipe: PartRecipe,
    parts: Sequence[Part],
    summary: CompositeSummary,
    out: Path,
    exports: Sequence[FormatName],
    heard: CompositeProgress,
    *,
    prefixes: bool,
) -> None:
    read, expected = 0, len(parts) * (PASSES + len(exports))

    def on_part() -> None:
        nonlocal read
        read += 1
        heard.on_files(min(read, expected), expected)

    made = FinishedParts.of(recipe.work, parts, on_part)
    with replace_folder(out) as folder:
        write_files(folder, made, SourceOrder.of(recipe.bundle.vocabulary), inter=inter_file(summary.target))
        content = asdict(summary) | {
            "lineage": lineage_of(recipe.bundle, recipe.dataset),
            "files": {name: sha256_of(folder / name) for name in CHECKED_FILES},
        }
        (folder / SUMMARY).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        is_held_out = summary.interactions == "training"
        for name in exports:
            data = TrainingData(
                target=summary.target,
                rows=made.rows,
                schema=made.interaction_schema(),
                interactions=made.interactions,
                validation=lambda: _held_out(recipe, parts, "validation") if is_held_out else (),
                test=lambda: _held_out(recipe, parts, "test") if is_held_out else (),
                prefixes=prefixes,
                directory=out / name,
            )
            _write_export(folder, name, data)


def _held_out(recipe: PartRecipe, parts: Sequence[Part], which: Literal["validation", "test"]) -> Iterator[HeldOutItem]:
    """The held-out items that are of the target, with what came before them; never read to make the training rows."""
    target_range = recipe.dataset.vocabulary.token_range(recipe.target)
    for part in parts:
        dataset = read_users(recipe.dataset, part.users)
        before = dataset.train if which == "validation" else dataset.before_test
        items_U = dataset.validation if which == "validation" else dataset.test
        for user in np.flatnonzero(target_range.mask(items_U)).tolist():
            history = before[user][target_range.mask(before[user])]
            time_of = float(dataset.times[user][len(before[user])]) if dataset.has_times else None
            [item] = dataset.vocabulary.item_ids_of([int(items_U[user])])
            yield HeldOutItem(dataset.user_ids[user], dataset.vocabulary.item_ids_of(history), item, time_of)


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


def inter_file(target: str) -> str:
    """
    Name of the RecBole file of a target's sequences.

    >>> inter_file("food"), inter_file("Food/Drink")
    ('food.inter', 'Food%2FDrink.inter')
    """
    return f"{file_name(target)}{INTER_SUFFIX}"
