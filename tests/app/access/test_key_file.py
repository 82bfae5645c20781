"""The file of keys: what is a key in it, what is refused, and how the command changes it."""

import io
import json
import sys

import pytest

from app.access.key_file import (
    ALL_SCOPES,
    AccessKey,
    KeyScope,
    add_key,
    hash_of,
    new_secret,
    read_keys,
    remove_key,
    scopes_of,
)
from app.cli.taesar import main
from app.errors import KeyFileError

HASH = hash_of(b"a key that somebody has")


def key(name, secret, *scopes):
    return AccessKey(name, frozenset(scopes) or ALL_SCOPES, hash_of(secret))


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys"


def test_comments_blank_lines_and_a_byte_order_mark_are_no_keys(file):
    file.write_bytes(
        b"\xef\xbb\xbf# of the shop\r\n\r\n   \n  # indented\n"
        + f"shop regenerate,mappings:read sha256:{HASH}\r\n".encode()
        + f"ops\tadmin   sha256:{hash_of(b'other')}".encode()
    )

    assert read_keys(file) == (
        AccessKey("shop", frozenset({KeyScope.REGENERATE, KeyScope.MAPPINGS}), HASH),
        AccessKey("ops", frozenset({KeyScope.ADMIN}), hash_of(b"other")),
    )


@pytest.mark.parametrize(
    "line",
    [
        "a-key-in-plain-text",
        f"shop sha256:{HASH}",
        f"shop jobs sha256:{HASH[:-1]}",
        f"shop jobs sha256:{HASH}0",
        f"shop jobs {HASH}",
        f"shop everything sha256:{HASH}",
        f"shop , sha256:{HASH}",
        f"-shop jobs sha256:{HASH}",
        f"{'s' * 65} jobs sha256:{HASH}",
        f"shop jobs sha256:{HASH} # of the shop",
    ],
)
def test_a_line_that_is_no_key_stops_the_reading_and_is_named_without_its_words(file, line):
    file.write_text(f"# first\n{line}\n")

    with pytest.raises(KeyFileError, match="line 2") as caught:
        read_keys(file)
    assert line.split()[-1] not in str(caught.value)
    assert HASH[:8] not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"# none yet\n", b"\xef\xbb\xbf\n", b"\xff\xfe\n", None])
def test_a_file_without_a_key_is_an_error(file, content):
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(KeyFileError, match=r"holds no key|no text|cannot be read"):
        read_keys(file)


@pytest.mark.parametrize("second", [f"shop jobs sha256:{hash_of(b'2')}", f"other jobs sha256:{HASH}"])
def test_two_keys_share_neither_name_nor_value(file, second):
    file.write_text(f"shop jobs sha256:{HASH}\n{second}\n")

    with pytest.raises(KeyFileError, match="line 2"):
        read_keys(file)


def test_added_keys_stand_below_what_is_there_and_removed_ones_leave_the_rest(file):
    file.write_text(f"# of the shop\nshop jobs sha256:{HASH}")
    add_key(file, key("ops", b"1", KeyScope.ADMIN))
    add_key(file, key("night", b"2", KeyScope.JOBS, KeyScope.REGENERATE))
    remove_key(file, "ops")

    assert file.read_text() == (
        f"# of the shop\nshop jobs sha256:{HASH}\nnight regenerate,jobs sha256:{hash_of(b'2')}\n"
    )


def test_the_file_stays_the_same_file_since_a_container_sees_the_one_that_was_mounted(file):
    add_key(file, key("ops", b"1"))
    before = file.stat().st_ino
    add_key(file, key("shop", b"2"))
    remove_key(file, "ops")

    assert file.stat().st_ino == before
    assert oct(file.stat().st_mode & 0o777) == "0o600"


def test_the_last_key_an_unknown_one_and_a_second_of_its_name_are_refused(file):
    add_key(file, key("ops", b"1"))
    before = file.read_bytes()

    with pytest.raises(KeyFileError, match="last key"):
        remove_key(file, "ops")
    with pytest.raises(KeyFileError, match="no key is called shop"):
        remove_key(file, "shop")
    with pytest.raises(KeyFileError, match="another key is called ops"):
        add_key(file, key("ops", b"2"))
    with pytest.raises(KeyFileError, match="no name"):
        add_key(file, key("two words", b"2"))
    assert file.read_bytes() == before


def test_a_new_key_has_256_bits_and_is_never_the_same():
    assert len({new_secret() for _ in range(100)}) == 100
    assert {len(new_secret()) for _ in range(100)} == {len("taesar_") + 43}


def test_scopes_are_read_in_any_order_and_unknown_ones_named():
    assert scopes_of(" jobs , admin,jobs") == {KeyScope.JOBS, KeyScope.ADMIN}
    with pytest.raises(KeyFileError, match="write is none of the scopes regenerate, jobs, mappings:read, admin"):
        scopes_of("jobs,write")


@pytest.fixture
def run(monkeypatch, capsys):
    """A function arguments of `taesar keys` -> (exit code, output, error output)."""

    def command(*arguments, given=""):
        monkeypatch.setattr(sys, "argv", ["taesar", "keys", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err

    return command


def test_the_command_makes_shows_once_lists_and_removes(file, run, monkeypatch):
    made = run("add", "shop", "--scopes", "jobs,regenerate", "--quiet", "--file", file)
    monkeypatch.setenv("TAESAR_API_KEYS_FILE", str(file))
    given = run("add", "ops", "--scopes", "admin", "--existing", given="their-key-of-old-times\n")
    listed = run("list", "--json")
    removed = run("remove", "ops")

    assert [one[0] for one in (made, given, listed, removed)] == [0, 0, 0, 0]
    assert read_keys(file) == (key("shop", made[1].strip().encode(), KeyScope.JOBS, KeyScope.REGENERATE),)
    assert json.loads(listed[1])["keys"] == [
        {"name": "shop", "scopes": ["jobs", "regenerate"]},
        {"name": "ops", "scopes": ["admin"]},
    ]
    assert "their-key" not in str(given)


@pytest.mark.parametrize(
    ("arguments", "given", "expected"),
    [
        (["add", "shop"], "", "--scopes"),
        (["add", "shop", "--scopes", "jobs", "--existing"], "short\n", "at least 20"),
        (["add", "shop", "--scopes", "read"], "", "none of the scopes"),
        (["add"], "", "name of the key"),
        (["remove", "shop"], "", "is not there"),
        (["list"], "", "cannot be read"),
    ],
)
def test_what_the_command_cannot_do_it_says_in_a_line(file, run, arguments, given, expected):
    code, _, said = run(*arguments, "--file", file, given=given)

    assert code == 2
    assert expected in " ".join(said.split())
