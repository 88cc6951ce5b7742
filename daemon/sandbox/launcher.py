"""Starts one program confined and watches over it: `python -I -S -c BOOTSTRAP FD`, with the orders on socket FD.

The launcher adopts every descendant of the program, outlives it, and ends all of them when the program ends or when the
daemon does (its end of the socket closes). The program stands in a session of its own, is killed when the launcher dies, and
cannot signal it where Landlock scopes signals. Standard library only; starts in about 25 ms.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from perdure.daemon.sandbox import landlock, seccomp

_SECONDS_TO_END_ALL = 5.0


def main(descriptor: int) -> None:
    """Read the orders, run, report. The reply is one JSON object: `{"exit"}`, `{"signal"}` or `{"refused"}`."""
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    orders = _orders(control)
    landlock.adopt_orphans()
    child, failed = _start(orders, control)
    watch = os.pidfd_open(child)
    poll = select.poll()
    poll.register(watch, select.POLLIN)
    poll.register(control, select.POLLIN | select.POLLHUP)
    ready = {number for number, _ in poll.poll()}
    report: dict[str, Any] = {}
    if watch in ready:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        report = {"exit": code} if code >= 0 else {"signal": -code}
        if refusal := os.read(failed, 4096).decode(errors="replace"):
            report = {"refused": refusal}
    _end_all(child)
    with contextlib.suppress(OSError):
        control.sendall(json.dumps(report).encode())


def _orders(control: socket.socket) -> dict[str, Any]:
    length = int.from_bytes(_exactly(control, 8), "big")
    orders: dict[str, Any] = json.loads(_exactly(control, length))
    return orders


def _exactly(control: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = control.recv(length - len(parts))
        if not part:
            sys.exit(1)  # the daemon ended before it gave its orders: nothing was started
        parts += part
    return bytes(parts)


def _start(orders: dict[str, Any], control: socket.socket) -> tuple[int, int]:
    """The program's pid, and a pipe on which it says why it could not start (empty: it did)."""
    failed, telling = os.pipe()
    launcher = os.getpid()
    child = os.fork()
    if child:
        os.close(telling)
        for number in (0, 1, 2):  # what the program holds open is its own
            os.close(number)
        return child, failed
    try:
        os.close(failed)
        control.close()
        os.setsid()
        landlock.die_with_parent(signal.SIGKILL)
        if os.getppid() != launcher:
            os._exit(1)
        _confine(orders)
        os.execve(orders["program"], orders["argv"], orders["env"])  # noqa: S606 - that is what this is for
    except BaseException as error:  # noqa: BLE001 - this child ends here, whatever it was
        os.write(telling, f"{type(error).__name__}: {error}"[:4000].encode(errors="replace"))
    finally:
        os._exit(127)


def _confine(orders: dict[str, Any]) -> None:
    for name, value in orders["limits"].items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    with contextlib.suppress(OSError), Path("/proc/self/oom_score_adj").open("w") as score:
        score.write("1000")  # out of memory, the kernel shall take the tool, not the daemon
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.umask(0o077)
    os.chdir(orders["cwd"])
    if orders["grants"] is None:
        return
    landlock.drop_capabilities()
    landlock.restrict([(path, rights) for path, rights in orders["grants"]], network=orders["network"])
    if seccomp.available():
        seccomp.filter_system_calls(network=orders["network"], daemon=orders["daemon"])


def _end_all(child: int) -> None:
    """Kill every descendant, until none is left (orphans come to us) or they multiply faster than we kill."""
    until = time.monotonic() + _SECONDS_TO_END_ALL
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    while time.monotonic() < until:
        for pid in _descendants():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.005)  # killed, but not yet dead: the kernel has no event for "any descendant has ended"


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - a hundred names, every few milliseconds
        if name.isdigit():
            with contextlib.suppress(OSError), Path(f"/proc/{name}/stat").open("rb") as stat:
                parent = int(stat.read().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        born = children.get(waiting.pop(), [])
        found += born
        waiting += born
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]))
