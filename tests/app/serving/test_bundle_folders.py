"""Bundles on disk: half-copied and damaged folders keep neither a job nor an activation from a whole one."""

import shutil

import pytest

from app.errors import UnknownModelError
from app.jobs.job_models import BundleModels
from app.serving.bundle_folders import BundleFolders
from app.settings import Settings
from models.errors import BundleMissingFileError


@pytest.fixture
def root(tmp_path, make_bundle):
    """A folder of two bundles, ``m`` and ``n``; returns (folder, version of ``m``)."""
    make_bundle(tmp_path / "n", seed=2)
    return tmp_path, make_bundle(tmp_path / "m", seed=1).version


def half_copied(folder, name):
    """A copy of ``m`` that has its manifest and not its networks yet."""
    (folder / name).mkdir()
    shutil.copy(folder / "m" / "manifest.json", folder / name)


def worker_models(folder):
    return BundleModels(Settings(bundle_root=folder, device="cpu"))


@pytest.mark.parametrize("name", [".m.tmp", "a"], ids=["hidden", "plain"])
def test_a_worker_passes_over_a_half_copied_folder(root, name):
    folder, version = root
    half_copied(folder, name)  # its name comes before the whole one's

    assert worker_models(folder).regenerator(version, "paper").bundle.version == version


def test_a_worker_does_not_load_what_is_still_being_written(root, make_bundle):
    folder, _ = root
    version = make_bundle(folder / ".being-written", seed=3).version

    with pytest.raises(UnknownModelError, match=version):
        worker_models(folder).regenerator(version, "paper")


def test_the_service_activates_the_whole_folder_of_a_version(root, serving):
    folder, version = root
    half_copied(folder, "a")
    client = serving(bundle=folder / "n", bundle_root=folder)

    assert client.post(f"/models/{version}/activate").status_code == 200


def test_a_version_without_a_whole_folder_is_refused_with_the_reason(root):
    folder, version = root
    half_copied(folder, "a")
    shutil.rmtree(folder / "m")

    with pytest.raises(BundleMissingFileError, match="a/base"):
        worker_models(folder).regenerator(version, "paper")


def test_a_folder_replaced_between_the_two_looks_at_it_is_not_taken_for_the_former(root):
    """Its name was read from one bundle, and what is loaded is another."""
    folder, version = root
    folders = BundleFolders(None, folder)

    with pytest.raises(UnknownModelError, match=version):
        folders.load(version, lambda directory: directory, version_of=lambda _: "of the new one")
    assert folders.load(version, lambda directory: directory, version_of=lambda _: version) == folder / "m"
