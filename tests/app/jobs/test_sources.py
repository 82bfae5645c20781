"""The allow-list of inputs: what it admits, what it refuses, and that it cannot be climbed around."""

import fsspec
import pytest

from app.errors import (
    FilesUnavailableError,
    InvalidSourceError,
    RequestTooLargeError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from app.jobs.formats import SourceLimits
from app.jobs.sources import SourceRoots
from app.storage.job_files import Storage

LIMITS = SourceLimits(max_bytes=100, max_expanded_bytes=1000, max_items=5)


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "in"
    (inside / "deep").mkdir(parents=True)
    (inside / "a.ndjson").write_text("inside")
    (inside / "deep" / "b.ndjson").write_text("deeper")
    (tmp_path / "secret.ndjson").write_text("secret")
    (tmp_path / "inside-out").mkdir()
    return inside


@pytest.fixture
def roots(folder):
    return SourceRoots((f"file://{folder}/", "memory://bucket/logs"))


@pytest.mark.parametrize(("name", "content"), [("a.ndjson", b"inside"), ("deep/b.ndjson", b"deeper")])
def test_files_under_an_allowed_folder_are_read(roots, folder, name, content):
    with roots.open(f"file://{folder}/{name}", LIMITS) as file:
        assert file.read() == content


def test_other_schemes_go_through_fsspec(roots):
    fsspec.filesystem("memory").pipe_file("/bucket/logs/x.csv", b"remote")
    with roots.open("memory://bucket/logs/x.csv", LIMITS) as file:
        assert file.read() == b"remote"


@pytest.mark.parametrize(
    "uri",
    [
        "file://{parent}/secret.ndjson",
        "file://{parent}/inside-out/x",
        "file://{folder}",
        "file:///etc/passwd",
        "memory://bucket/logs-of-others/x.csv",
        "memory://other/logs/x.csv",
        "s3://bucket/logs/x.csv",
        "http://127.0.0.1:9/x.csv",
    ],
)
def test_what_lies_outside_is_refused_whether_it_exists_or_not(roots, folder, uri):
    with pytest.raises(SourceNotAllowedError, match="TAESAR_INPUT_ROOTS"):
        roots.resolve(uri.format(folder=folder, parent=folder.parent))


@pytest.mark.parametrize(
    "uri",
    [
        "file://{folder}/../secret.ndjson",
        "file://{folder}/deep/../../secret.ndjson",
        "file://{folder}/./a.ndjson",
        "file://{folder}//a.ndjson",
        "file://{folder}/%2e%2e/secret.ndjson",
        "file://{folder}/..\\secret.ndjson",
        "file://localhost{folder}/a.ndjson",
        "file://{folder}/a.ndjson\x00.csv",
        "file://{folder}/a.ndjson\n",
        "file://{folder}/a.ndjson?x=1",
        "file://{folder}/a.ndjson#x",
        "simplecache::file://{folder}/a.ndjson",
        "zip://a.ndjson::file://{folder}/a.zip",
        "memory://user@bucket/logs/x.csv",
        "{folder}/a.ndjson",
        "a.ndjson",
        "",
        "FILE://{folder}/a.ndjson",
    ],
)
def test_traversal_chains_and_disguises_are_invalid(roots, folder, uri):
    with pytest.raises(InvalidSourceError):
        roots.resolve(uri.format(folder=folder))


def test_a_symbolic_link_does_not_lead_outside(roots, folder):
    (folder / "link.ndjson").symlink_to(folder.parent / "secret.ndjson")
    (folder / "linked").symlink_to(folder.parent)

    for name in ("link.ndjson", "linked/secret.ndjson"):
        with pytest.raises(SourceNotAllowedError):
            roots.open(f"file://{folder}/{name}", LIMITS)


def test_symbolic_links_in_a_circle_are_not_found(roots, folder):
    (folder / "loop").symlink_to("loop")

    for name in ("loop", "loop/a.ndjson"):
        with pytest.raises(SourceNotFoundError, match="in a circle"):
            roots.open(f"file://{folder}/{name}", LIMITS)


@pytest.mark.parametrize("name", ["missing.ndjson", "deep"])
def test_an_allowed_name_without_a_file_is_not_found(roots, folder, name):
    with pytest.raises(SourceNotFoundError):
        roots.open(f"file://{folder}/{name}", LIMITS)


def test_a_file_over_the_limit_is_refused_before_it_is_read(roots, folder):
    (folder / "big.ndjson").write_bytes(b"x" * 101)
    with pytest.raises(RequestTooLargeError, match="TAESAR_MAX_INPUT_BYTES"):
        roots.open(f"file://{folder}/big.ndjson", LIMITS)


def test_no_root_admits_nothing(folder):
    with pytest.raises(SourceNotAllowedError):
        SourceRoots(()).resolve(f"file://{folder}/a.ndjson")


def test_a_scheme_without_an_installed_reader_says_so():
    with pytest.raises(InvalidSourceError, match="cannot read nosuch://"):
        SourceRoots(("nosuch://bucket",)).resolve("nosuch://bucket/x.csv")


@pytest.fixture(params=["local", "object store"])
def storage(request, tmp_path):
    return Storage(str(tmp_path / "storage") if request.param == "local" else f"memory://{tmp_path.name}/storage")


def test_a_stored_file_is_read_back_replaced_and_removed_with_its_folder(storage):
    storage.write("job/a", b"first")
    storage.write("job/a", b"second")
    storage.write("other/a", b"third")
    before = (storage.read("job/a"), storage.folders())
    storage.delete_folder("job")
    storage.delete_folder("job")

    assert before == (b"second", ["job", "other"])
    assert storage.folders() == ["other"]
    with pytest.raises(FileNotFoundError):
        storage.read("job/a")


def test_a_write_that_fails_midway_leaves_no_file(tmp_path):
    storage = Storage(str(tmp_path))

    class Broken:
        def __init__(self):
            self.parts = [b"half"]

        def read(self, _):
            if self.parts:
                return self.parts.pop()
            raise OSError("gone")

    with pytest.raises(FilesUnavailableError, match="OSError"):
        storage.write_stream("job/upload", Broken())

    assert list((tmp_path / "job").iterdir()) == []


class OddReader(fsspec.AbstractFileSystem):
    """Raises what no file system should, when it is made or when it is asked, as its host says."""

    protocol = "oddreader"
    cachable = False

    def __init__(self, **_):
        super().__init__()
        if OddReader.breaks == "at once":
            raise KeyError("no credentials")

    def isfile(self, path):
        raise RuntimeError("the client is not configured")


@pytest.mark.parametrize(("breaks", "kind"), [("at once", InvalidSourceError), ("later", SourceNotFoundError)])
def test_a_reader_that_raises_what_it_likes_is_a_source_that_cannot_be_read(breaks, kind):
    OddReader.breaks = breaks
    fsspec.register_implementation("oddreader", OddReader, clobber=True)
    roots = SourceRoots(("oddreader://host",))
    for read in (roots.open, lambda uri, limits: roots.files([uri], limits)):
        with pytest.raises(kind, match="oddreader"):
            read("oddreader://host/x.csv", LIMITS)
