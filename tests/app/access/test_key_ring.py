"""Keys that come and go while the service runs; a file that is half written or wrong changes nothing."""

import os

import pytest
from structlog.testing import capture_logs

from app.access.key_file import ALL_SCOPES, AccessKey, hash_of
from app.access.key_ring import KeyRing
from app.errors import KeyFileError
from app.settings import Settings


def line(name, secret):
    return AccessKey(name, ALL_SCOPES, hash_of(secret)).line() + "\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys"
    path.write_text(line("first", b"1") + line("second", b"2"))
    return path


def names(ring):
    return [ring.find(secret) and ring.find(secret).name for secret in (b"1", b"2", b"3")]


def test_a_changed_file_counts_when_it_has_settled(file):
    ring = KeyRing((), file)
    file.write_text(line("first", b"1") + line("third", b"3"))

    assert names(ring) == ["first", "second", None]
    assert (ring.look(), names(ring)) == (False, ["first", "second", None])
    assert (ring.look(), names(ring)) == (True, ["first", None, "third"])
    assert ring.look() is False


def test_a_file_that_takes_the_others_place_counts_too_whatever_its_time(file, tmp_path):
    ring = KeyRing((), file)
    other = tmp_path / "other"
    other.write_text(line("first", b"1") + line("second", b"3"))
    times = file.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)
    ring.look()

    assert (ring.look(), names(ring)) == (True, ["first", None, "second"])


@pytest.mark.parametrize("length", range(0, 170, 7))
def test_a_file_that_is_being_written_changes_nothing(file, length):
    """However little of it is there: what is not whole is not read, or not taken."""
    whole = line("first", b"1") + line("third", b"3")
    ring = KeyRing((), file)
    with file.open("w") as writing:
        writing.write(whole[:length])
        writing.flush()
        ring.look()
        assert names(ring) == ["first", "second", None]
        writing.write(whole[length:])
    ring.look()
    assert names(ring) == ["first", "second", None]
    ring.look()
    assert names(ring) == ["first", None, "third"]


@pytest.mark.parametrize("content", [b"", b"# nobody\n", b"plain-key\n", b"first admin sha256:12\n", None])
def test_a_file_that_cannot_be_used_keeps_the_keys_of_before_and_is_told_once(file, content):
    ring = KeyRing((), file)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)

    with capture_logs() as logs:
        looks = [ring.look() for _ in range(4)]
    assert looks == [False] * 4
    assert names(ring) == ["first", "second", None]
    assert [entry["event"] for entry in logs] == ["keys_not_read"]
    assert "plain-key" not in str(logs)
    file.write_text(line("third", b"3"))
    ring.look()
    assert (ring.look(), names(ring)) == (True, [None, None, "third"])


def test_the_log_names_the_keys_that_came_and_went_and_never_their_values(file):
    ring = KeyRing((), file)
    file.write_text(line("first", b"1") + line("third", b"3"))
    with capture_logs() as logs:
        ring.look()
        ring.look()

    assert [(one["event"], one["come"], one["gone"]) for one in logs] == [("keys_changed", ["third"], ["second"])]
    assert hash_of(b"3") not in str(logs)


def test_keys_of_the_environment_may_do_everything_and_stay(file):
    ring = KeyRing.of(Settings(api_keys="plain-a,plain-b", api_keys_file=file))
    file.write_text(line("third", b"3"))
    ring.look()
    ring.look()

    assert [(key.name, key.scopes) for key in ring.keys] == [
        ("environment-1", ALL_SCOPES),
        ("environment-2", ALL_SCOPES),
        ("third", ALL_SCOPES),
    ]
    assert ring.find(b"plain-b").name == "environment-2"


def test_a_key_of_the_environment_stands_in_no_file(file):
    file.write_text(line("first", b"plain-a"))

    with pytest.raises(KeyFileError, match="TAESAR_API_KEYS, too"):
        KeyRing.of(Settings(api_keys="plain-a", api_keys_file=file))
