"""The accepted keys of this process: those of the environment, and those of a file that may change while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from app.access.key_file import ALL_SCOPES, AccessKey, hash_of, read_keys
from app.errors import KeyFileError
from app.runtime.logs import logger
from app.settings import Settings

log = logger(__name__)

# A change is taken over when the file has stayed as it is from one look to the next
LOOK_SECONDS = 0.5
ENVIRONMENT = "environment"

# Device, inode, size, and when content and entry changed; None where there is no file
_Signature = tuple[int, int, int, int, int] | None


class KeyRing:
    """
    The accepted keys.

    Args:
        fixed: keys that stay for the life of the process.
        file: whose keys come and go with it, or None.

    Raises:
        KeyFileError: the file cannot be used, or a key stands in both.
    """

    def __init__(self, fixed: Sequence[AccessKey], file: Path | None) -> None:
        self._fixed = tuple(fixed)
        self._file = file
        self._adopted = _signature(file)  # before reading: what changes meanwhile is another change
        self._seen = self._adopted
        self._by_hash = self._indexed(() if file is None else read_keys(file))

    @classmethod
    def of(cls, settings: Settings) -> KeyRing:
        """The keys that the operator chose; those of the environment may do everything."""
        secrets = [key.get_secret_value().encode() for key in settings.api_keys]
        named = [AccessKey(f"{ENVIRONMENT}-{n}", ALL_SCOPES, hash_of(one)) for n, one in enumerate(secrets, start=1)]
        return cls(named, settings.api_keys_file)

    @property
    def is_empty(self) -> bool:
        """Whether no key is asked for; never changes."""
        return not self._by_hash

    @property
    def keys(self) -> tuple[AccessKey, ...]:
        """All of them."""
        return tuple(self._by_hash.values())

    @property
    def keys_of_file(self) -> tuple[AccessKey, ...]:
        """Those that come and go."""
        return tuple(key for key in self.keys if key not in self._fixed)

    def find(self, secret: bytes) -> AccessKey | None:
        """
        The key of this value, if it is accepted.

        Hashes are looked up, not compared in constant time: who does not know the key cannot choose its hash, so the
        time tells nothing that helps.
        """
        return self._by_hash.get(hash_of(secret))

    def with_hash(self, digest: str) -> AccessKey | None:
        """The key whose hash this is, if it is accepted."""
        return self._by_hash.get(digest)

    async def watch(self, tell: Callable[[], bool]) -> None:
        """
        Take over what becomes of the file, for ever.

        *tell* is called in a thread, first of all and after each change, until it says that it was done.
        """
        told = False
        while self._file is not None:
            try:
                if await asyncio.to_thread(self.look) or not told:
                    told = await asyncio.to_thread(tell)
            except Exception:  # whatever it is, keys must not cease to come and go
                log.exception("keys_not_recorded")
                told = True
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> bool:
        """
        Look at the file; whether other keys are accepted than before.

        A file that has changed since the last look is perhaps half written: it is read at the next. One that cannot be
        used changes nothing: an error in the log, and the keys of before.
        """
        current = _signature(self._file)
        settled, self._seen = current == self._seen, current
        if current == self._adopted or not settled or self._file is None:
            return False
        self._adopted = current
        try:
            found = self._indexed(read_keys(self._file))
        except KeyFileError as error:
            log.error("keys_not_read", reason=str(error), kept=sorted(key.name for key in self.keys))
            return False
        before, after = set(self.keys), set(found.values())
        self._by_hash = found
        if before != after:
            log.info(
                "keys_changed", gone=sorted(k.name for k in before - after), come=sorted(k.name for k in after - before)
            )
        return before != after

    def _indexed(self, from_file: Sequence[AccessKey]) -> dict[str, AccessKey]:
        found = {key.hash: key for key in self._fixed}
        names = {key.name for key in self._fixed}
        for key in from_file:
            if key.hash in found or key.name in names:
                raise KeyFileError(f"{self._file}: the key {key.name} stands in TAESAR_API_KEYS, too, or its name does")
            found[key.hash] = key
        return found


def _signature(file: Path | None) -> _Signature:
    if file is None:
        return None
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
