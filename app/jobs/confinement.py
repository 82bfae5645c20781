"""
Taking from this process what reading needs not: other files, the network, memory without end.

Linux keeps to it by Landlock (5.13, for the network 6.7) until the process ends. Where it is missing, what is left is
that the process was started with nothing worth taking: no descriptors, no secrets in its environment.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

# Private memory of the process: far above what bounded reading takes, so that only a hostile file meets it.
MAX_MEMORY_BYTES = 6 << 30

# Of linux/landlock.h: the numbers of the calls are the same on every processor
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_SET_NO_NEW_PRIVILEGES = 38
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
# Every right over files that a version of Landlock knows: (version, number of them)
_FILE_RIGHTS = ((1, 13), (2, 14), (3, 15), (5, 16))
_NETWORK_SINCE, _NETWORK_RIGHTS = 4, 0b11
_SCOPES_SINCE, _SCOPES = 6, 0b11  # abstract sockets and signals, to processes outside


def limit_resources(*, cpu_seconds: int | None = None) -> None:
    """Bound memory, and with *cpu_seconds* the time that may be computed from now on; no core is dumped."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    if cpu_seconds is not None:
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))


def confine(*, readable: Iterable[Path], writable: Iterable[Path]) -> bool:
    """
    Give up every file but those of these folders, and the network; False where the system cannot do all of it.

    What is open stays open. It holds for this thread and what it starts.
    """
    if sys.platform != "linux":
        return False
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    version = call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    if version < 1:
        return False
    files = (1 << max(count for since, count in _FILE_RIGHTS if version >= since)) - 1
    network = _NETWORK_RIGHTS if version >= _NETWORK_SINCE else 0
    scopes = _SCOPES if version >= _SCOPES_SINCE else 0
    fields = [files, *([network] if network else []), *([scopes] if scopes else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    try:
        for folder in readable:
            _allow(call, ruleset, folder, _READ_FILE | _READ_FOLDER)
        for folder in writable:
            _allow(call, ruleset, folder, files)
        if ctypes.CDLL(None, use_errno=True).prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
            return False
        return bool(call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)) == 0 and network)
    finally:
        os.close(ruleset)


def _allow(call: ctypes._NamedFuncPointer, ruleset: int, folder: Path, rights: int) -> None:
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = struct.pack("=Qi", rights if folder.is_dir() else rights & _READ_FILE, descriptor)
        call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(descriptor)
