"""
Where a result comes from: the bundle that made it, the datasets behind both, their inputs and the time they cover.

Every output says it of itself (a dataset and a bundle in their manifests, a result in its summary), so the chain can be
told when the folders before it are long gone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.bundle import MANIFEST as BUNDLE_MANIFEST
from models.bundle import BundleDescription, describe_bundle
from models.data.dataset import DATASET_FACTS, DatasetDescription
from models.data.dataset import MANIFEST as DATASET_MANIFEST
from models.errors import DatasetFormatError

RESULT_SUMMARY = "summary.json"
BUNDLE_FACTS = ("name", "created", "refit", "dataset_fingerprint", "dataset", "init")


def lineage_of(bundle: BundleDescription, dataset: DatasetDescription) -> dict[str, Any]:
    """What the summary of a result says of the bundle and the dataset that it was made of."""
    return {
        "bundle": {"version": bundle.version, **_chosen(bundle.provenance, BUNDLE_FACTS)},
        "dataset": _chosen(dataset.manifest, DATASET_FACTS),
    }


def read_lineage(folder: Path) -> dict[str, Any]:
    """
    The lineage of a result, a bundle or a dataset: tables ``result``, ``bundle`` and ``dataset``, where it has them.

    Raises:
        DatasetFormatError: the folder is none of them, or an earlier version's, which did not say.
        BundleError: the folder's bundle cannot be read.
    """
    if (folder / BUNDLE_MANIFEST).is_file():
        described = describe_bundle(folder)
        provenance = described.provenance
        dataset = provenance.get("dataset") or {"fingerprint": provenance.get("dataset_fingerprint")}
        return {"bundle": {"version": described.version, **_chosen(provenance, BUNDLE_FACTS)}, "dataset": dataset}
    for name in (DATASET_MANIFEST, RESULT_SUMMARY):
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if name == DATASET_MANIFEST:
                return {"dataset": _chosen(content, DATASET_FACTS)}
            facts = ("target", "rule", "dial", "interactions", "users", "users_taken_over", "replaced", "deleted")
            return {"result": _chosen(content, facts), **content["lineage"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetFormatError(f"{path}: says nothing of where it comes from: {error}") from error
    raise DatasetFormatError(f"{folder}: holds no result, bundle or dataset")


def describe_lineage(lineage: Mapping[str, Any]) -> Iterator[str]:
    """The lineage in lines, the latest first."""
    if "result" in lineage:
        result = lineage["result"]
        which = f"{result.get('interactions')} interactions, {result.get('users')} users"
        yield f"result: target {result.get('target')}, {which}"
    if "bundle" in lineage:
        bundle = lineage["bundle"]
        yield f"bundle {bundle['version']}: {bundle.get('name')}, made {bundle.get('created')}"
        init = bundle.get("init") or {}
        for place, version in enumerate(init.get("ancestors", [])):
            made = f", made {init.get('created')}" if place == 0 else ""
            yield f"  goes on from bundle {version}{made}"
        behind = bundle.get("dataset") or {}
        if behind and behind.get("fingerprint") != lineage.get("dataset", {}).get("fingerprint"):
            yield f"  trained on {_dataset_line(behind)}"
    if "dataset" in lineage:
        dataset = lineage["dataset"]
        yield _dataset_line(dataset)
        for ancestor in dataset.get("extends") or []:
            yield f"  extends {_dataset_line(ancestor)}"


def _dataset_line(dataset: Mapping[str, Any]) -> str:
    period, source = dataset.get("period") or {}, dataset.get("source") or {}
    digest = source.get("sha256")
    inputs = f", from {source.get('name')}" + (f" (SHA-256 {digest[:12]})" if digest else "") if source else ""
    return (
        f"dataset {str(dataset.get('fingerprint'))[:12]}: {dataset.get('name')}, made {dataset.get('created')}, "
        f"{period.get('first_date')} to {period.get('last_date')}{inputs}"
    )


def _chosen(content: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: content[name] for name in names if content.get(name) is not None}
