"""A small system-call filter for confined programs: what Landlock cannot say, or not yet on this kernel.

Without network, sockets can only be made for netlink (so not for UDP, which Landlock does not cover, nor for the Unix sockets
by which a program could ask systemd or a container engine to act for it). The daemon can neither be signalled nor have its
limits changed. Refused calls fail with EPERM. Standard library only: the launcher imports this in a bare interpreter.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Mapping

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_DENY = 0x00050000 | errno.EPERM
_LOAD, _EQUAL, _GREATER_OR_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data; arguments are 8 bytes each
_AF_NETLINK = 16
_X32 = 0x40000000

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand

_NUMBERS: Mapping[str, tuple[int, Mapping[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41,
            "kill": 62,
            "rt_sigqueueinfo": 129,
            "tkill": 200,
            "tgkill": 234,
            "rt_tgsigqueueinfo": 297,
            "prlimit64": 302,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "socket": 198,
            "kill": 129,
            "rt_sigqueueinfo": 138,
            "tkill": 130,
            "tgkill": 131,
            "rt_tgsigqueueinfo": 240,
            "prlimit64": 261,
        },
    ),
}
_EVERYWHERE = {"pidfd_send_signal": 424, "io_uring_setup": 425}


def available() -> bool:
    """Whether there is a filter for this machine's architecture."""
    return os.uname().machine in _NUMBERS


def filter_system_calls(*, network: bool, daemon: int) -> None:
    """Filter this process and its children for good; `daemon` is the process id to protect. Needs no_new_privs.
    Raises OSError where the kernel refuses."""
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in _program(network=network, daemon=daemon))
    buffer = ctypes.create_string_buffer(program, len(program))

    class _Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    handle = _Program(len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(
        ctypes.c_int(_PR_SET_SECCOMP),
        ctypes.c_ulong(_MODE_FILTER),
        ctypes.byref(handle),
        ctypes.c_ulong(0),
        ctypes.c_ulong(0),
    ):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def _program(*, network: bool, daemon: int) -> list[_Instruction]:
    architecture, numbers = _NUMBERS[os.uname().machine]
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),  # another architecture's numbers would mean other calls
        (_LOAD, 0, 0, _NUMBER),
        (_GREATER_OR_EQUAL, 0, 1, _X32),
        (_RETURN, 0, 0, _DENY),
    ]
    # A pid of -1 means everybody, and the daemon's group is its own id in service managers and a shell's job.
    groups = (-1, -daemon)
    program += _deny_where(numbers["kill"], 0, (daemon, *groups))
    program += _deny_where(numbers["tkill"], 0, (daemon,))
    program += _deny_where(numbers["tgkill"], 0, (daemon, -1))
    program += _deny_where(numbers["rt_sigqueueinfo"], 0, (daemon,))
    program += _deny_where(numbers["rt_tgsigqueueinfo"], 0, (daemon,))
    program += _allow_only(numbers["prlimit64"], 0, (0,))
    program += _deny(_EVERYWHERE["pidfd_send_signal"])
    program += _deny(_EVERYWHERE["io_uring_setup"])  # its operations pass system-call filters by
    if not network:
        program += _allow_only(numbers["socket"], 0, (_AF_NETLINK,))
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def _deny(number: int) -> list[_Instruction]:
    return [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]


def _deny_where(number: int, argument: int, values: tuple[int, ...]) -> list[_Instruction]:
    """Refuse the call where the (32 bit) argument is one of `values`. Leaves the number loaded for what follows."""
    checks: list[_Instruction] = []
    for value in values:
        checks += [(_EQUAL, 0, 1, value & 0xFFFFFFFF), (_RETURN, 0, 0, _DENY)]
    body = [(_LOAD, 0, 0, _ARGUMENT + 8 * argument), *checks, (_LOAD, 0, 0, _NUMBER)]
    return [(_EQUAL, 0, len(body), number), *body]


def _allow_only(number: int, argument: int, values: tuple[int, ...]) -> list[_Instruction]:
    checks: list[_Instruction] = []
    for value in values:
        checks += [(_EQUAL, 0, 1, value & 0xFFFFFFFF), (_RETURN, 0, 0, _ALLOW)]
    body = [(_LOAD, 0, 0, _ARGUMENT + 8 * argument), *checks, (_RETURN, 0, 0, _DENY)]
    return [(_EQUAL, 0, len(body), number), *body]
