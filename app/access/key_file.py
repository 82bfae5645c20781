"""
The file of accepted keys: a line each, with the key's name, what it may do, and its hash.

``shop regenerate,mappings:read sha256:9f86d0...``; lines that begin with # and blank lines say nothing.

A key is 32 random bytes, which nobody can find by trying, so one plain SHA-256 protects it: slow hashes with salts are
for what people think of. Whoever reads the file can call nobody with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from app.errors import KeyFileError
from app.storage.private import PRIVATE_FILE

SECRET_BYTES = 32
SECRET_PREFIX = "taesar_"  # secret scanners, and people, see what was left lying about
# Of a key that was made elsewhere: shorter ones could be found by trying
MIN_SECRET_LENGTH = 20
MAX_NAME = 64
HASH_PREFIX = "sha256:"

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_BOM = b"\xef\xbb\xbf"


class KeyScope(StrEnum):
    """What a key may be for."""

    REGENERATE = "regenerate"
    JOBS = "jobs"
    MAPPINGS = "mappings:read"
    ADMIN = "admin"


ALL_SCOPES = frozenset(KeyScope)


@dataclass(frozen=True)
class AccessKey:
    """
    An accepted key, of which only the hash is known.

    Args:
        name: what logs and the audit record call it.
        scopes: what it may do.
        hash: of its value, in hexadecimal digits.
    """

    name: str
    scopes: frozenset[KeyScope]
    hash: str

    def line(self) -> str:
        """As the file has it."""
        scopes = ",".join(scope for scope in KeyScope if scope in self.scopes)
        return f"{self.name} {scopes} {HASH_PREFIX}{self.hash}"


def new_secret() -> str:
    """A key that was never given to anybody."""
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def hash_of(secret: bytes) -> str:
    """What is kept of a key."""
    return hashlib.sha256(secret).hexdigest()


def read_keys(path: Path) -> tuple[AccessKey, ...]:
    """
    The keys of the file, at least one.

    Raises:
        KeyFileError: it cannot be read, holds no key, or a line of it is none; says which line, never its words.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error
    keys = parse_keys(content, path)
    if not keys:
        raise KeyFileError(f"{path} holds no key")
    return keys


def parse_keys(content: bytes, path: Path) -> tuple[AccessKey, ...]:
    """
    The keys that *content* of the file *path* holds; a byte order mark is none.

    Raises:
        KeyFileError: a line is no key, or two keys share a name or a value.
    """
    try:
        lines = content.removeprefix(_BOM).decode().splitlines()
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path} is no text in UTF-8") from error
    found: dict[str, AccessKey] = {}
    for number, line in enumerate(lines, start=1):
        if not is_key_line(line):
            continue
        key = _key_of(line, f"{path}, line {number}")
        if key.name in found:
            raise KeyFileError(f"{path}, line {number}: another key is called {key.name}, too")
        if any(other.hash == key.hash for other in found.values()):
            raise KeyFileError(f"{path}, line {number}: the key stands in another line, too")
        found[key.name] = key
    return tuple(found.values())


def is_key_line(line: str) -> bool:
    """Whether *line* should be a key: neither blank nor a comment."""
    return bool(line.strip()) and not line.lstrip().startswith("#")


def scopes_of(text: str) -> frozenset[KeyScope]:
    """
    The scopes of a comma-separated list.

    Raises:
        KeyFileError: one is unknown, or there is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ALL_SCOPES]
    if unknown or not names:
        raise KeyFileError(f"{', '.join(unknown) or 'nothing'} is none of the scopes {', '.join(KeyScope)}")
    return frozenset(map(KeyScope, names))


def add_key(path: Path, key: AccessKey) -> None:
    """
    Write *key* below the others; a file that is not there is made, for its user alone.

    Raises:
        KeyFileError: its name is none, or stands in the file, or the file is not one of keys.
    """
    if not _NAME.fullmatch(key.name):
        raise KeyFileError(f"{key.name!r} is no name: letters, digits and ._- of at most {MAX_NAME}")
    with _rewriting(path) as file:
        content = file.read()
        line_end = b"\n" if content and not content.endswith(b"\n") else b""
        added = content + line_end + f"{key.line()}\n".encode()
        parse_keys(added, path)
        _overwrite(file, added)


def remove_key(path: Path, name: str) -> None:
    """
    Take the key *name* out; comments and other keys stay as they are.

    Raises:
        KeyFileError: there is none, or it is the last one: a service needs one to start.
    """
    if not path.exists():
        raise KeyFileError(f"{path} is not there")
    with _rewriting(path) as file:
        content = file.read()
        left = [key for key in parse_keys(content, path) if key.name != name]
        if len(left) == len(parse_keys(content, path)):
            raise KeyFileError(f"{path}: no key is called {name}")
        if not left:
            raise KeyFileError(f"{name} is the last key of {path}; add another one first")
        lines = content.removeprefix(_BOM).decode().splitlines(keepends=True)
        kept = [line for line in lines if not (is_key_line(line) and line.split()[0] == name)]
        _overwrite(file, "".join(kept).encode())


def _key_of(line: str, place: str) -> AccessKey:
    """The key of one line; raises KeyFileError, without the line's words, which may be a secret."""
    fields = line.split()
    if len(fields) == 1:
        raise KeyFileError(
            f"{place}: a key in plain text, or half a line; keys are kept as 'NAME SCOPES sha256:...': "
            "`taesar keys add NAME --existing` takes a key that clients have already"
        )
    if len(fields) != 3 or not _NAME.fullmatch(fields[0]) or not _HASH.fullmatch(fields[2]):
        raise KeyFileError(f"{place}: not 'NAME SCOPES sha256:...', as `taesar keys add` writes it")
    try:
        scopes = scopes_of(fields[1])
    except KeyFileError as error:
        raise KeyFileError(f"{place}: {error}") from error
    return AccessKey(fields[0], scopes, fields[2].removeprefix(HASH_PREFIX))


@contextmanager
def _rewriting(path: Path) -> Iterator[BinaryIO]:
    """
    The file, locked against another command, and written in place.

    A container sees the very file that was mounted: one that takes its place by renaming would never reach it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from error
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _overwrite(file: BinaryIO, content: bytes) -> None:
    """Write, then cut what is left of before: whoever reads in between finds no empty file."""
    file.seek(0)
    file.write(content)
    file.flush()
    file.truncate(len(content))
    os.fsync(file.fileno())
