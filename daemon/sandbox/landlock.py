"""Landlock and the few other kernel interfaces a confined program needs, through ctypes.

Standard library only: the launcher imports this in a bare interpreter. Numbers are from linux/landlock.h, prctl.h and
capability.h; system calls 444 to 446 have the same number on every architecture.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Sequence
from functools import cache

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_CHAR, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 1 << 9, 1 << 10, 1 << 11, 1 << 12
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_BIND_TCP, _CONNECT_TCP = 1 << 0, 1 << 1
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1 << 0, 1 << 1

READ = READ_FILE | READ_DIR
RUN = READ | EXECUTE
WRITE = (
    RUN
    | WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SOCK
    | MAKE_FIFO
    | MAKE_SYM
    | REFER
    | TRUNCATE
)
_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_HANDLED_SINCE = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}  # ABI -> rights that it brought

_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522
# What a program started by Perdure keeps of root's power: enough to administer files, users and the network. The rest
# (modules, raw I/O, tracing, mounts, BPF, devices, reading past permissions by handle …) leads around the sandbox; so does
# reading other processes' memory for performance: Linux 6.18 lets CAP_PERFMON read /proc/PID/environ past Landlock.
_CAPABILITIES_KEPT = frozenset({0, 1, 3, 4, 5, 6, 7, 10, 12, 13})


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _call(number: int, *arguments: object) -> int:
    """A system call; raises OSError with the kernel's errno."""
    result = int(_libc().syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _prctl(option: int, *arguments: int) -> None:
    values = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc().prctl(ctypes.c_int(option), *values) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


@cache
def abi() -> int:
    """The kernel's Landlock ABI version; 0 where Landlock is missing or switched off."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_CREATE_RULESET_VERSION))
    except OSError:
        return 0


def restrict(grants: Sequence[tuple[str, int]], *, network: bool) -> None:
    """Confine this process and its children for good: files only as granted (`(path, rights)`, hierarchies), no TCP
    unless `network`, no signals and no abstract sockets beyond the sandbox, as far as the kernel's ABI goes. A path that
    does not exist grants nothing. Raises OSError where the kernel refuses."""
    version = abi()
    files = 0
    for since, rights in _HANDLED_SINCE.items():
        files |= rights if version >= since else 0
    tcp = 0 if network or version < 4 else _BIND_TCP | _CONNECT_TCP
    scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if version >= 6 else 0
    attributes = struct.pack("=QQQ", files, tcp, scoped)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    try:
        for path, rights in grants:
            _grant(ruleset, path, rights & files)
        no_new_privileges()
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _grant(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISLNK(mode):
            return
        if not stat.S_ISDIR(mode):
            rights &= _OF_A_FILE
        if rights:
            _call(
                _ADD_RULE,
                ctypes.c_int(ruleset),
                ctypes.c_int(_RULE_PATH_BENEATH),
                struct.pack("=Qi", rights, descriptor),
                ctypes.c_uint32(0),
            )
    finally:
        os.close(descriptor)


def no_new_privileges() -> None:
    """From here on no program gains rights by set-user-id bits or file capabilities."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(signal: int) -> None:
    """Ask the kernel to send `signal` when the parent ends. Check the parent afterwards: it may have ended already."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def drop_capabilities() -> None:
    """Give up the capabilities that lead around a sandbox, for good. Without any, this does nothing."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    if _libc().capget(header, data) != 0:
        return
    held = struct.unpack("=6I", data.raw)
    words = list(held)
    if not any(words):
        return  # a hardened service has none, and its system-call filter forbids capset
    for capability in range(64):
        if capability in _CAPABILITIES_KEPT:
            continue
        with contextlib.suppress(
            OSError
        ):  # EINVAL: no such capability here; EPERM: not ours to drop, and not held either
            _prctl(_PR_CAPBSET_DROP, capability)
        for word in range(3):
            words[(capability // 32) * 3 + word] &= ~(1 << (capability % 32))
    if tuple(words) != held and _libc().capset(header, struct.pack("=6I", *words)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
