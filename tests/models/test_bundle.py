"""The bundle: round trip, and one clear refusal for every way it can be wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle import (
    BASE,
    MANIFEST,
    VOCABULARY,
    Bundle,
    describe_bundle,
    load_bundle,
    read_version,
    save_bundle,
    with_tunings,
)
from models.data.dataset import sha256_of
from models.errors import (
    BundleCorruptError,
    BundleError,
    BundleMismatchError,
    BundleMissingFileError,
    BundleVersionError,
    OutputExistsError,
)
from models.tuning import Guard, JointShare, OwnShares, TargetTuning
from models.vocabulary import Vocabulary
from tests.conftest import random_decoder


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    shutil.copytree(bundle.directory, tmp_path / "copy")
    return tmp_path / "copy"


def edit_manifest(directory: Path, **changes: Any) -> None:
    manifest = json.loads((directory / MANIFEST).read_text())
    (directory / MANIFEST).write_text(json.dumps({**manifest, **changes}))


def rehash(directory: Path) -> None:
    files = json.loads((directory / MANIFEST).read_text())["files"]
    edit_manifest(directory, files={name: sha256_of(directory / name) for name in files})


def test_a_saved_bundle_loads_with_equal_content(bundle: Bundle) -> None:
    loaded = load_bundle(bundle.directory)
    assert (loaded.version, loaded.vocabulary, loaded.config) == (bundle.version, bundle.vocabulary, bundle.config)
    for ours, theirs in zip([loaded.base, *loaded.experts], [bundle.base, *bundle.experts], strict=True):
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor)
    assert not loaded.base.training
    assert loaded.provenance == {"dataset": "random"}


def test_the_version_follows_content_not_time(bundle: Bundle, vocabulary: Vocabulary, tmp_path: Path) -> None:
    def version(seed: int, note: str) -> str:
        networks = [random_decoder(vocabulary.num_items, seed + index) for index in range(4)]
        return save_bundle(
            tmp_path / f"{seed}{note}",
            vocabulary=vocabulary,
            base=networks[0],
            experts=networks[1:],
            provenance={"note": note},
        ).version

    assert version(0, "a") == version(0, "b") == bundle.version
    assert version(1, "a") != bundle.version


def test_saving_over_a_bundle_replaces_it(bundle: Bundle, copied: Path) -> None:
    parts = {"vocabulary": bundle.vocabulary, "base": bundle.base, "experts": bundle.experts}
    assert save_bundle(copied, provenance={"again": True}, **parts).provenance == {"again": True}
    assert [path.name for path in copied.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("foreign", [["notes.txt"], ["manifest.json", "precious.js"], ["manifest.json"]])
def test_saving_over_other_files_is_refused(bundle: Bundle, tmp_path: Path, foreign: list[str]) -> None:
    """A manifest.json alone does not make a folder ours."""
    for name in foreign:
        (tmp_path / name).write_text("{}")
    with pytest.raises(OutputExistsError, match="is not a bundle"):
        save_bundle(tmp_path, vocabulary=bundle.vocabulary, base=bundle.base, experts=bundle.experts, provenance={})
    assert sorted(path.name for path in tmp_path.iterdir()) == foreign


def test_missing_folder_and_missing_file_are_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleMissingFileError, match=r"nowhere/manifest\.json: not found"):
        load_bundle(tmp_path / "nowhere")
    (copied / "expert-01.safetensors").unlink()
    with pytest.raises(BundleMissingFileError, match=r"expert-01\.safetensors: listed in the manifest but missing"):
        load_bundle(copied)


def test_a_truncated_file_is_named(copied: Path) -> None:
    path = copied / BASE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BundleCorruptError, match=r"base\.safetensors: its SHA-256 differs"):
        load_bundle(copied)


def test_a_truncated_file_with_a_matching_hash_is_still_refused(copied: Path) -> None:
    path = copied / BASE
    path.write_bytes(path.read_bytes()[:-10])
    rehash(copied)
    with pytest.raises(BundleCorruptError, match=r"base\.safetensors: not a safetensors file"):
        load_bundle(copied)


@pytest.mark.parametrize("text", ["not json", "[]", '{"hello": 1}', '{"format_version": 1}'])
def test_a_foreign_manifest_is_refused(copied: Path, text: str) -> None:
    (copied / MANIFEST).write_text(text)
    with pytest.raises(BundleCorruptError, match=r"manifest\.json"):
        load_bundle(copied)


@pytest.mark.parametrize("change", [{"domains": 3}, {"files": ["base.safetensors"]}, {"provenance": 3}])
def test_a_manifest_with_parts_of_another_kind_is_refused(copied: Path, change: dict[str, Any]) -> None:
    edit_manifest(copied, **change)
    with pytest.raises(BundleCorruptError, match="its domains are not a list, or its files or provenance not a table"):
        load_bundle(copied)


@pytest.mark.parametrize(
    "decoder",
    [
        7,
        [],
        {"num_items": "many"},
        {"num_items": 60, "num_heads": 0},
        {"num_items": 60, "dropout": 5},
        {"num_items": 60, "attention_dropout": "a"},
        {"num_items": 60, "init_std": -1.0},
        {"num_items": 60, "layer_norm_epsilon": "x"},
    ],
)
def test_a_decoder_configuration_of_another_kind_is_refused(copied: Path, decoder: object) -> None:
    edit_manifest(copied, decoder=decoder)
    with pytest.raises(BundleMismatchError, match="not a decoder configuration"):
        load_bundle(copied)


def test_a_newer_format_is_refused(copied: Path) -> None:
    edit_manifest(copied, format_version=4)
    with pytest.raises(BundleVersionError, match="format version 4; this code reads up to 3"):
        load_bundle(copied)


GUARD = Guard(training_hints=3, serving_hints=0, finding="it helped: .02 -> .03", expert_weight=0.3)
TUNINGS = (TargetTuning(OwnShares(0.25, 1.0), GUARD), TargetTuning(OwnShares(0.0, 0.5)), TargetTuning())


def test_a_bundle_without_choices_keeps_the_version_that_it_had(bundle: Bundle) -> None:
    """Its manifest is as it was before there were any, and the hash of the same entries."""
    manifest = json.loads((bundle.directory / MANIFEST).read_text())
    content = {
        key: manifest[key] for key in ("decoder", "domains", "files", "format_version", "vocabulary_fingerprint")
    }

    assert manifest.keys() == {*content, "provenance"}
    assert manifest["format_version"] == 1
    assert bundle.version == hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    assert [bundle.tuning(domain) for domain in bundle.vocabulary.domains] == [TargetTuning()] * 3


def test_choices_come_back_and_are_part_of_the_version(bundle: Bundle, copied: Path) -> None:
    changed = with_tunings(load_bundle(copied), TUNINGS, {"chosen": "here"})
    loaded = load_bundle(copied)

    assert loaded.tunings == TUNINGS
    assert loaded.tuning("food") == TUNINGS[1]
    assert (loaded.version, loaded.provenance) == (changed.version, {"chosen": "here"})
    assert loaded.version != bundle.version
    assert with_tunings(loaded, TUNINGS[::-1], {}).version != loaded.version
    assert sorted(path.name for path in copied.iterdir()) == sorted(path.name for path in bundle.directory.iterdir())


def test_choices_given_at_once_and_later_make_the_same_bundle(bundle: Bundle, copied: Path, tmp_path: Path) -> None:
    parts = {"vocabulary": bundle.vocabulary, "base": bundle.base, "experts": bundle.experts, "provenance": {}}
    at_once = save_bundle(tmp_path / "at-once", **parts, tunings=TUNINGS)

    assert with_tunings(load_bundle(copied), TUNINGS, {}).version == at_once.version


def test_a_bundle_that_was_replaced_meanwhile_gets_no_choices(copied: Path) -> None:
    loaded = load_bundle(copied)
    with_tunings(loaded, TUNINGS, {})
    with pytest.raises(BundleMismatchError, match="holds another bundle by now"):
        with_tunings(loaded, TUNINGS[::-1], {})


@pytest.mark.parametrize(
    "tunings",
    [
        [{}, {}, {}],
        7,
        [{"own_shares": {"after_target": 2, "after_source": 0}, "guard": None}] * 3,
        [{"own_shares": {"after_target": "a", "after_source": 0}, "guard": None}] * 3,
        [{"own_shares": {"colour": 0}, "guard": None}] * 3,
        [{"own_shares": {}, "guard": {"training_hints": True, "serving_hints": 0, "finding": ""}}] * 3,
        [{"own_shares": {}, "guard": {"training_hints": 0, "serving_hints": -1, "finding": ""}}] * 3,
        [{"own_shares": {}, "guard": {"training_hints": 0.5, "serving_hints": 0, "finding": ""}}] * 3,
        [{"own_shares": {}, "guard": {"training_hints": 0, "serving_hints": 0, "finding": 7}}] * 3,
        [{"own_shares": {}, "guard": {"training_hints": 0, "serving_hints": 0, "finding": "", "expert_weight": 1.1}}]
        * 3,
        [{"own_shares": {}, "guard": {"training_hints": 1}}] * 3,
        [{"own_shares": {}, "guard": None}] * 2,
    ],
)
def test_choices_of_another_kind_are_refused(copied: Path, tunings: object) -> None:
    edit_manifest(copied, tunings=tunings)
    with pytest.raises(
        BundleMismatchError, match=r"manifest\.json: (not what a target may choose|2 tunings, 3 domains)"
    ):
        load_bundle(copied)


def test_a_foreign_vocabulary_is_refused(copied: Path) -> None:
    Vocabulary(("books", "food", "kitchen"), (("x",), ("y",), ("z",))).save(copied / VOCABULARY)
    rehash(copied)
    with pytest.raises(BundleMismatchError, match=r"vocabulary\.parquet: its domains or items are not the manifest's"):
        load_bundle(copied)


def test_an_unreadable_vocabulary_is_refused(copied: Path) -> None:
    (copied / VOCABULARY).write_bytes(b"PAR1 no")
    rehash(copied)
    with pytest.raises(BundleCorruptError, match=r"vocabulary\.parquet"):
        load_bundle(copied)


@pytest.mark.parametrize("change", [{"width": 32}, {"num_layers": 3}, {"num_items": 59}])
def test_tensors_of_another_shape_are_refused(copied: Path, change: dict[str, int]) -> None:
    decoder = json.loads((copied / MANIFEST).read_text())["decoder"]
    edit_manifest(copied, decoder={**decoder, **change})
    with pytest.raises(BundleMismatchError, match="tensors are not those of the configured decoder"):
        load_bundle(copied)


def test_an_unknown_network_option_is_refused(copied: Path) -> None:
    edit_manifest(copied, decoder={"num_items": 60, "colour": "red"})
    with pytest.raises(BundleMismatchError, match="not a decoder configuration"):
        load_bundle(copied)


def test_a_missing_tensor_is_refused(copied: Path) -> None:
    tensors = load_file(copied / BASE)
    tensors.pop("input_norm.weight")
    save_file(tensors, copied / BASE)
    rehash(copied)
    with pytest.raises(BundleMismatchError, match=r"input_norm\.weight"):
        load_bundle(copied)


def test_too_few_experts_are_refused(bundle: Bundle, copied: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleMismatchError, match="2 experts for 3 domains"):
        save_bundle(
            tmp_path / "two", vocabulary=bundle.vocabulary, base=bundle.base, experts=bundle.experts[:2], provenance={}
        )
    files = json.loads((copied / MANIFEST).read_text())["files"]
    files.pop("expert-02.safetensors")
    edit_manifest(copied, files=files)
    with pytest.raises(BundleError, match="expected"):
        load_bundle(copied)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 1 << 40},
        {"width": 1 << 40, "num_heads": 1 << 40},
        {"inner_width": 1 << 40},
        {"num_layers": 2_000_000},
        {"max_length": 1 << 40},
        {"num_items": 1 << 60},
        *({size: True} for size in ("num_items", "width", "inner_width", "num_layers", "num_heads", "max_length")),
    ],
)
def test_a_size_that_no_machine_holds_is_refused_before_a_network_is_built(
    copied: Path, change: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two million layers would take hours and all memory, a width of 2^40 ends in an overflow; true is no size."""
    monkeypatch.setattr("models.bundle.Decoder", None)
    decoder = json.loads((copied / MANIFEST).read_text())["decoder"]
    edit_manifest(copied, decoder={**decoder, **change})
    with pytest.raises(BundleMismatchError, match="not a decoder configuration"):
        load_bundle(copied)


@pytest.mark.parametrize(
    "text",
    [
        '{"provenance": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"provenance": ' + '{"a":' * 5_000 + "1" + "}" * 5_000 + "}",
        '{"format_version": 1, "provenance": {"a": ' + "[" * 40 + "]" * 40 + "}}",
        '{"format_version": 1, "provenance": {"a": "\\ud800"}}',
        '{"format_version": ' + "9" * 10_000 + "}",
    ],
    ids=["deep lists", "deep tables", "forty deep", "half a character", "a long number"],
)
@pytest.mark.parametrize("read", [load_bundle, read_version])
def test_a_manifest_that_could_not_be_handed_on_is_refused(copied: Path, text: str, read: Any) -> None:
    """One such folder among the bundles must not take down the list of all."""
    (copied / MANIFEST).write_text(text)
    with pytest.raises(BundleCorruptError, match=r"manifest\.json"):
        read(copied)


def test_a_manifest_of_any_size_is_not_read_into_memory(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.bundle.MANIFEST_BYTES", 100)
    with pytest.raises(BundleCorruptError, match="more than 100 bytes"):
        read_version(copied)


READS_BOTH = TargetTuning(OwnShares(0.25, 1.0), GUARD, JointShare(0.5, OwnShares(1.0, 0.5)))


def test_a_joint_expert_is_saved_and_read_again(bundle: Bundle, tmp_path: Path) -> None:
    """Format 3; a domain that reads it has two parts, the others one; a change of guards keeps both."""
    content = {"vocabulary": bundle.vocabulary, "base": bundle.base, "experts": bundle.experts, "provenance": {}}
    tunings = (READS_BOTH, TargetTuning(), TargetTuning())
    save_bundle(tmp_path / "bundle", **content, tunings=tunings, joint=bundle.expert("food"))
    found = load_bundle(tmp_path / "bundle")
    changed = with_tunings(found, [dataclasses.replace(tuning, guard=GUARD) for tuning in tunings], {})

    assert found.tunings == tunings
    assert found.joint is not None
    assert torch.equal(found.joint.item_embeddings_VD, bundle.expert("food").item_embeddings_VD)
    assert [len(found.expert_parts(domain)) for domain in found.vocabulary.domains] == [2, 1, 1]
    assert sum(part.weight for part in found.expert_parts(found.vocabulary.domains[0])) == 1
    assert load_bundle(tmp_path / "bundle").version == changed.version != found.version
    assert describe_bundle(tmp_path / "bundle").tunings == changed.tunings


def test_a_joint_expert_and_the_choices_to_read_it_go_together(bundle: Bundle, tmp_path: Path) -> None:
    """On writing and on reading: one without the other is refused."""
    content = {"vocabulary": bundle.vocabulary, "base": bundle.base, "experts": bundle.experts, "provenance": {}}
    for tunings, joint in (((READS_BOTH,) * 3, None), ((TargetTuning(),) * 3, bundle.base), ((), bundle.base)):
        with pytest.raises(BundleMismatchError, match="a joint expert that nobody reads, or is not there"):
            save_bundle(tmp_path / "refused", **content, tunings=tunings, joint=joint)
    save_bundle(tmp_path / "bundle", **content, tunings=(READS_BOTH,) * 3, joint=bundle.base)
    edit_manifest(tmp_path / "bundle", tunings=[TargetTuning().content] * 3)
    with pytest.raises(BundleMismatchError, match="a joint expert that nobody reads, or is not there"):
        load_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    "joint", [{}, {"weight": 1, "own_shares": {}}, {"weight": 0.5}, {"weight": "a", "own_shares": {}}, 7]
)
def test_a_share_of_another_kind_is_refused(copied: Path, joint: object) -> None:
    edit_manifest(copied, tunings=[{"own_shares": {}, "guard": None, "joint": joint}] * 3)
    with pytest.raises(BundleMismatchError, match=r"manifest\.json: not what a target may choose"):
        load_bundle(copied)
