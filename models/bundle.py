"""
The bundle: one folder that holds everything regeneration needs, without pickle.

    manifest.json         format version, network configuration, domains, provenance, SHA-256 of each other file, and
                          what validation chose for each domain as a target (format 2 and later)
    vocabulary.parquet    token_id, domain, item_id
    base.safetensors      the base decoder, theta_M
    expert-00.safetensors one expert per domain, in domain order, theta_d
    joint.safetensors     the joint expert, where a target reads one (format 3)

A bundle is written beside its destination and renamed into place, so a folder with a manifest is whole. Its version
is a hash of its content: equal weights, vocabulary, configuration and tunings have equal versions, whatever the clock
says. One without tunings is written in format 1, as before there were any, and keeps the version that it had.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from models.data.dataset import sha256_of
from models.errors import (
    BundleCorruptError,
    BundleMismatchError,
    BundleMissingFileError,
    BundleVersionError,
    DatasetFormatError,
    OutputExistsError,
)
from models.files import check_replaceable, replace_file, replace_folder
from models.network.decoder import Decoder, DecoderConfig
from models.network.expert_parts import ExpertPart
from models.tuning import TargetTuning, tuning_of
from models.vocabulary import Vocabulary

FORMAT_VERSION, WITHOUT_JOINT, WITHOUT_TUNINGS = 3, 2, 1
MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.parquet"
BASE, JOINT = "base.safetensors", "joint.safetensors"
EXPERT_FILE = re.compile(r"expert-\d{2,}\.safetensors")
VERSION_LENGTH = 12
MANIFEST_BYTES = 16 * 1024**2
MANIFEST_DEPTH = 32


@dataclass(frozen=True)
class BundleDescription:
    """
    All of a bundle but its networks.

    Args:
        directory: where it lies.
        version: hash of its content, 12 hex digits.
        vocabulary: every item that the networks know.
        config: the size that base and experts share.
        provenance: how it was trained, as ``save_bundle`` was told.
        tunings: what validation chose for each domain as a target, in the vocabulary's order; none where it was not
            asked.
    """

    directory: Path
    version: str
    vocabulary: Vocabulary
    config: DecoderConfig
    provenance: Mapping[str, Any]
    tunings: tuple[TargetTuning, ...] = field(default=(), kw_only=True)

    def tuning(self, domain: str) -> TargetTuning:
        """What was chosen for *domain* as a target; raises UnknownDomainError."""
        index = self.vocabulary.domain_index(domain)
        return self.tunings[index] if self.tunings else TargetTuning()


@dataclass(frozen=True)
class Bundle(BundleDescription):
    """
    A loaded bundle, networks in evaluation mode.

    Args:
        base: theta_M.
        experts: theta_d, one per domain in the vocabulary's order.
        joint: the joint expert; None where no target reads one.
    """

    base: Decoder
    experts: tuple[Decoder, ...]
    joint: Decoder | None = field(default=None, kw_only=True)

    def expert(self, domain: str) -> Decoder:
        """The expert of *domain*; raises UnknownDomainError."""
        return self.experts[self.vocabulary.domain_index(domain)]

    def expert_parts(self, domain: str) -> tuple[ExpertPart, ...]:
        """Everything that is read to know what comes next in *domain*; raises UnknownDomainError."""
        expert, tuning = self.expert(domain), self.tuning(domain)
        if tuning.joint is None or self.joint is None:
            return (ExpertPart(expert, tuning.own_shares),)
        weight = tuning.joint.weight
        return (
            ExpertPart(expert, tuning.own_shares, 1 - weight),
            ExpertPart(self.joint, tuning.joint.own_shares, weight),
        )


def save_bundle(
    directory: Path,
    *,
    vocabulary: Vocabulary,
    base: Decoder,
    experts: Sequence[Decoder],
    provenance: Mapping[str, Any],
    tunings: Sequence[TargetTuning] = (),
    joint: Decoder | None = None,
) -> Bundle:
    """
    Write a bundle folder; nothing is left behind when it fails.

    Args:
        directory: the folder to write; an existing bundle there is replaced, any other content is refused.
        vocabulary: the items, in the token order of the networks' tables.
        base: the base decoder.
        experts: one decoder per domain of the vocabulary, same configuration as the base.
        provenance: JSON-able record of dataset, options and metrics.
        tunings: one per domain, or none.
        joint: the joint expert that some of them read; None where none does.

    Raises:
        OutputExistsError: *directory* holds something that is not a bundle.
        BundleMismatchError: networks, vocabulary and tunings do not belong together.
    """
    networks = [base, *experts, *([] if joint is None else [joint])]
    _check_together(vocabulary, base.config, networks, where=str(directory))
    if len(experts) != len(vocabulary.domains):
        raise BundleMismatchError(f"{directory}: {len(experts)} experts for {len(vocabulary.domains)} domains")
    check_destination(directory)
    with replace_folder(directory) as staging:
        vocabulary.save(staging / VOCABULARY)
        names = _network_files(len(experts), has_joint=joint is not None)
        for name, network in zip(names, networks, strict=True):
            tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in network.state_dict().items()}
            save_file(tensors, staging / name)
        manifest = {
            "format_version": WITHOUT_TUNINGS,
            "decoder": dataclasses.asdict(base.config),
            "domains": list(vocabulary.domains),
            "vocabulary_fingerprint": vocabulary.fingerprint,
            "files": {name: sha256_of(staging / name) for name in [VOCABULARY, *names]},
            "provenance": provenance,
        }
        manifest |= _chosen(tunings, vocabulary, has_joint=joint is not None, where=str(directory))
        (staging / MANIFEST).write_text(_manifest_text(manifest), encoding="utf-8")
    return load_bundle(directory, device=base.item_embeddings_VD.device)


def with_tunings(bundle: Bundle, tunings: Sequence[TargetTuning], provenance: Mapping[str, Any]) -> Bundle:
    """
    The same networks with other *tunings* and *provenance*, on disk too: the manifest alone is replaced, whole.

    Raises:
        BundleError: the folder is no longer the bundle's.
    """
    manifest = _read_manifest(bundle.directory)
    if _version_of(manifest) != bundle.version:
        raise BundleMismatchError(f"{bundle.directory}: holds another bundle by now")
    chosen = _chosen(tunings, bundle.vocabulary, has_joint=bundle.joint is not None, where=str(bundle.directory))
    manifest |= {"provenance": dict(provenance), **chosen}
    with replace_file(bundle.directory / MANIFEST) as partial:
        partial.write_text(_manifest_text(manifest), encoding="utf-8")
    return dataclasses.replace(
        bundle, version=_version_of(manifest), tunings=tuple(tunings), provenance=manifest["provenance"]
    )


def without_guards(bundle: Bundle) -> Bundle:
    """The same bundle, in memory, that leaves nothing undone for any target."""
    tunings = tuple(dataclasses.replace(tuning, guard=None) for tuning in bundle.tunings)
    return dataclasses.replace(bundle, tunings=tunings)


def check_destination(directory: Path, *, replace: bool = True) -> None:
    """
    Whether a bundle may be written to *directory*; ask before hours of training.

    Args:
        directory: the folder to write.
        replace: whether a bundle that is there may go.

    Raises:
        OutputExistsError: it holds something that is not a bundle, or a bundle that may not go.
    """
    fixed = frozenset({MANIFEST, VOCABULARY, BASE, JOINT})
    check_replaceable(
        directory,
        what="a bundle",
        required=frozenset({MANIFEST, VOCABULARY}),
        ours=lambda name: name in fixed or EXPERT_FILE.fullmatch(name) is not None,
    )
    if not replace and (directory / MANIFEST).is_file():
        raise OutputExistsError(f"{directory}: holds a bundle already; --replace replaces it, or name another folder")


def load_bundle(directory: Path, device: torch.device | str = "cpu") -> Bundle:
    """
    Load and check a bundle.

    Raises:
        BundleMissingFileError: the manifest or a file that it lists is not there.
        BundleVersionError: written in a newer format.
        BundleCorruptError: a hash differs or a file cannot be parsed.
        BundleMismatchError: vocabulary, configuration and tensors disagree.
    """
    manifest = _read_manifest(directory)
    _check_files(directory, manifest, manifest["files"])
    described = _description(directory, manifest)
    config, num_experts = described.config, len(described.vocabulary.domains)
    base = _load_decoder(directory / BASE, config, device)
    experts = tuple(_load_decoder(directory / expert_file(index), config, device) for index in range(num_experts))
    joint = _load_decoder(directory / JOINT, config, device) if JOINT in manifest["files"] else None
    _check_together(described.vocabulary, config, [base, *experts], where=str(directory))
    return Bundle(**vars(described), base=base, experts=experts, joint=joint)


def describe_bundle(directory: Path) -> BundleDescription:
    """
    Read all but the networks, whose files are not looked at.

    Raises:
        BundleError: as ``load_bundle`` for the manifest and the vocabulary.
    """
    manifest = _read_manifest(directory)
    _check_files(directory, manifest, [VOCABULARY])
    return _description(directory, manifest)


def _check_files(directory: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> None:
    for name in names:
        path = directory / name
        if not path.is_file():
            raise BundleMissingFileError(f"{path}: listed in the manifest but missing")
        if sha256_of(path) != manifest["files"][name]:
            raise BundleCorruptError(f"{path}: its SHA-256 differs from the manifest's; truncated or edited")


def _description(directory: Path, manifest: Mapping[str, Any]) -> BundleDescription:
    try:
        vocabulary = Vocabulary.load(directory / VOCABULARY)
    except DatasetFormatError as error:
        raise BundleCorruptError(str(error)) from error
    try:
        config = DecoderConfig(**manifest["decoder"])
    except (TypeError, ValueError) as error:
        raise BundleMismatchError(f"{directory / MANIFEST}: not a decoder configuration: {error}") from error
    if list(vocabulary.domains) != manifest["domains"] or vocabulary.fingerprint != manifest["vocabulary_fingerprint"]:
        raise BundleMismatchError(f"{directory / VOCABULARY}: its domains or items are not the manifest's")
    try:
        tunings = tuple(tuning_of(content) for content in manifest.get("tunings", ()))
    except (TypeError, ValueError) as error:
        raise BundleMismatchError(f"{directory / MANIFEST}: not what a target may choose: {error}") from error
    if "tunings" in manifest and len(tunings) != len(vocabulary.domains):
        raise BundleMismatchError(f"{directory / MANIFEST}: {len(tunings)} tunings, {len(vocabulary.domains)} domains")
    if (JOINT in manifest["files"]) != any(tuning.joint for tuning in tunings):
        raise BundleMismatchError(f"{directory / MANIFEST}: a joint expert that nobody reads, or is not there")
    version = _version_of(manifest)
    return BundleDescription(directory, version, vocabulary, config, manifest["provenance"], tunings=tunings)


def read_version(directory: Path) -> str:
    """
    The version that ``load_bundle`` would report, from the manifest alone: no tensor is read, no hash checked.

    Raises:
        BundleError: as ``load_bundle`` for the manifest.
    """
    return _version_of(_read_manifest(directory))


def expert_file(domain_index: int) -> str:
    """Name of an expert's file inside a bundle."""
    return f"expert-{domain_index:02d}.safetensors"


def _network_files(num_experts: int, *, has_joint: bool) -> list[str]:
    return [BASE, *(expert_file(index) for index in range(num_experts)), *([JOINT] if has_joint else [])]


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not path.is_file():
        raise BundleMissingFileError(f"{path}: not found; not a bundle folder")
    try:
        if path.stat().st_size > MANIFEST_BYTES:
            raise BundleCorruptError(f"{path}: more than {MANIFEST_BYTES} bytes; not a bundle manifest")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(manifest, ensure_ascii=False).encode()  # half a character could be read, but never sent
    except (OSError, ValueError, RecursionError) as error:
        raise BundleCorruptError(f"{path}: not readable as JSON: {error}") from error
    if _depth_of(manifest) > MANIFEST_DEPTH:
        raise BundleCorruptError(f"{path}: nested more than {MANIFEST_DEPTH} deep; not a bundle manifest")
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise BundleCorruptError(f"{path}: has no format version; not a bundle manifest")
    if version > FORMAT_VERSION:
        raise BundleVersionError(f"{path}: format version {version}; this code reads up to {FORMAT_VERSION}")
    missing = {"decoder", "domains", "vocabulary_fingerprint", "files", "provenance"} - set(manifest)
    if missing:
        raise BundleCorruptError(f"{path}: lacks {', '.join(sorted(missing))}")
    tables = (manifest["files"], manifest["provenance"])
    if not isinstance(manifest["domains"], list) or not all(isinstance(table, dict) for table in tables):
        raise BundleCorruptError(f"{path}: its domains are not a list, or its files or provenance not a table")
    networks = _network_files(len(manifest["domains"]), has_joint=version == FORMAT_VERSION)
    expected = {VOCABULARY, *networks}
    if set(manifest["files"]) != expected:
        raise BundleMismatchError(f"{path}: lists {sorted(manifest['files'])}, expected {sorted(expected)}")
    return dict(manifest)


def _depth_of(value: object) -> int:
    """How deep lists and tables are nested in *value*, counted up to one beyond what a manifest may be."""
    depth, level = 0, [value]
    while level and depth <= MANIFEST_DEPTH:
        inner = [part for part in level if isinstance(part, dict | list)]
        level = [child for part in inner for child in (part.values() if isinstance(part, dict) else part)]
        depth += bool(inner)
    return depth


class _WithoutInitialisation(TorchFunctionMode):
    """Leaves ``torch.nn.init`` out: on meta tensors it has nothing to fill, and imports 800 modules to do so."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs else args[0]
        return func(*args, **(kwargs or {}))


def _load_decoder(path: Path, config: DecoderConfig, device: torch.device | str) -> Decoder:
    try:
        state = load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise BundleCorruptError(f"{path}: not a safetensors file: {error}") from error
    with torch.device("meta"), _WithoutInitialisation():
        decoder = Decoder(config)
    try:
        decoder.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise BundleMismatchError(f"{path}: its tensors are not those of the configured decoder: {error}") from error
    return decoder.eval().requires_grad_(False)


def _check_together(vocabulary: Vocabulary, config: DecoderConfig, networks: Sequence[Decoder], *, where: str) -> None:
    if config.num_items != vocabulary.num_items:
        raise BundleMismatchError(
            f"{where}: the network has {config.num_items} items, the vocabulary {vocabulary.num_items}"
        )
    if any(network.config != config for network in networks):
        raise BundleMismatchError(f"{where}: base and experts differ in configuration")


def _chosen(tunings: Sequence[TargetTuning], vocabulary: Vocabulary, *, has_joint: bool, where: str) -> dict[str, Any]:
    """The manifest's entries for *tunings*: none where there are none."""
    if has_joint != any(tuning.joint for tuning in tunings):
        raise BundleMismatchError(f"{where}: a joint expert that nobody reads, or is not there")
    if not tunings:
        return {}
    if len(tunings) != len(vocabulary.domains):
        raise BundleMismatchError(f"{where}: {len(tunings)} tunings for {len(vocabulary.domains)} domains")
    version = FORMAT_VERSION if has_joint else WITHOUT_JOINT
    return {"format_version": version, "tunings": [tuning.content for tuning in tunings]}


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2, sort_keys=True) + "\n"


def _version_of(manifest: Mapping[str, Any]) -> str:
    keys = ("format_version", "decoder", "domains", "vocabulary_fingerprint", "files", "tunings")
    content = {key: manifest[key] for key in keys if key in manifest}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:VERSION_LENGTH]
