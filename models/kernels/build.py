"""
C++ source -> shared library, with the compiler that the machine has, once per machine.

Nothing is compiled when the package is installed, so installing needs no compiler. Where there is none, or none that
works, the caller goes on without. A library is kept in the user's cache folder under a hash of all that went into it:
source and headers, flags, compiler version and processor.

Ours although ``torch.utils.cpp_extension.load`` compiles too: it needs ninja, keeps a library under its name and not
under what the processor is (a home folder that two machines share would crash one of them), and ends in an exception
where it cannot compile. Our kernels know nothing of torch's headers, so that one call of the compiler does.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from models.files import replace_file

LOG = logging.getLogger(__name__)

# Without errno and trap semantics comparisons and selections vectorise; no flag here lets sums be reordered.
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-pthread")
LIBRARY_FLAGS = ("-shared", "-fPIC")
# The processor at hand: x86 compilers take the first, some others only the second.
TUNING_FLAGS = ("-march=native", "-mcpu=native")
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_SECONDS = 120


def build(source: Path) -> Path | None:
    """
    The shared library of one C++ file, compiled unless the cache holds it; None where it cannot be compiled.

    The environment's ``CXX`` names another compiler (``CXX=`` none at all: go without), ``XDG_CACHE_HOME`` another
    place for the cache. Two processes that compile at once both end with a whole library.
    """
    compiler = _compiler()
    if compiler is None:
        LOG.info("no C++ compiler found: %s is not compiled", source.name)
        return None
    for tuning in TUNING_FLAGS:
        flags = (*FLAGS, tuning, *LIBRARY_FLAGS)
        try:
            name = f"{source.stem}-{_key(source, compiler, flags)}.so"
            for folder in _folders():
                library = folder / name
                if library.is_file() or _compile(source, compiler, flags, library):
                    return library
        except (OSError, subprocess.SubprocessError) as error:
            LOG.warning("%s was not compiled with %s %s: %s", source.name, compiler, tuning, _reason(error))
    return None


def load(source: Path) -> ctypes.CDLL | None:
    """The compiled library of one C++ file, loaded; None where it cannot be compiled or does not load."""
    path = build(source)
    if path is None:
        return None
    try:
        return ctypes.CDLL(str(path))  # lets go of the interpreter's lock during calls
    except OSError as error:
        LOG.warning("%s does not load: %s", path, error)
        return None


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    candidates = COMPILERS if named is None else (named,)
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def _key(source: Path, compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=TIMEOUT_SECONDS).stdout
    digest = hashlib.sha256()
    for part in (*_texts(source), " ".join(flags).encode(), version, _processor().encode()):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _texts(source: Path) -> Iterator[bytes]:
    """The source and the headers of ours that it includes."""
    text = source.read_bytes()
    yield text
    for name in re.findall(rb'^#include "(.+)"$', text, re.MULTILINE):
        yield from _texts(source.parent / name.decode())


def _processor() -> str:
    """What -march=native depends on: a cache on a shared home folder may be read by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kept = ("vendor_id", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.split(":")[0].strip() in kept)


def _folders() -> Iterator[Path]:
    """Where the library may lie: the cache, else a folder of this process alone (never a shared, guessable one)."""
    try:
        # Path.home() knows no home for a user without an entry in the password file.
        base = os.environ.get("XDG_CACHE_HOME")
        cache = (Path(base) if base else Path.home() / ".cache") / "taesar"
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(cache, os.W_OK):
            yield cache
    except (OSError, RuntimeError) as error:
        LOG.info("no cache folder for compiled code: %s", error)
    yield Path(tempfile.mkdtemp(prefix="taesar-"))


def _compile(source: Path, compiler: str, flags: tuple[str, ...], library: Path) -> bool:
    """Compile into *library*; raises what the compiler's failure raises."""
    with replace_file(library) as partial:
        command = [compiler, *flags, str(source), "-o", str(partial)]
        subprocess.run(command, capture_output=True, check=True, timeout=TIMEOUT_SECONDS)
    return True


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines: list[str] = error.stderr.decode(errors="replace").strip().splitlines()
        return lines[0] if lines else f"exit status {error.returncode}"
    return str(error)
