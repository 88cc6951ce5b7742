"""One system under test, imported once and forked for each run, with the shim preloaded: `python -m …server SYSTEM`.

Reads one request a line: {"directory", "do": prepare | start | resume | record, "call": at which state-changing call to kill
(0: never), "how"}; answers one line: {"killed", "value", "calls", "fired"}. The tool may ask to have its agent killed, through
a pipe in `world/`.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from tests.crash.peers.programs import PROGRAMS, SECONDS_MAX
from tests.crash.shim import Shim


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # nothing else that is printed may come between
    os.dup2(2, 1)
    program, shim = PROGRAMS[sys.argv[1]](), Shim()
    for line in sys.stdin:
        request = json.loads(line)
        os.chdir(request["directory"])
        print(json.dumps(run(program, shim, request)), file=answers, flush=True)


def run(program, shim: Shim, request: dict) -> dict:
    """Fork, do what is asked, and see how it ends."""
    what = request["do"]
    Path("answer.json").unlink(missing_ok=True)
    rests = getattr(program, "rested", None) if what == "resume" else None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        Path("ready").unlink(missing_ok=True)
        ready.bind("ready")
        child = os.fork()
        if child == 0:
            work(program, shim, request)
        watch(child, ready, rests)
    _, status = os.waitpid(child, 0)
    answer = json.loads(Path("answer.json").read_text()) if Path("answer.json").exists() else {"value": "stuck"}
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return {"killed": killed, **({"value": None} if killed else {}), **answer}


def work(program, shim: Shim, request: dict) -> None:
    """In the child: do it, and say how it went. Does not return."""
    try:
        log = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["NOTIFY_SOCKET"] = str(Path("ready").absolute())
        os.environ.pop("LD_PRELOAD", None)
        if request["do"] == "record":  # looking must not change what is looked at
            shutil.rmtree("look", ignore_errors=True)
            Path("look").mkdir()
            shutil.copytree("state", "look/state", ignore=shutil.ignore_patterns("*.sock"))
            os.chdir("look")
        shim.arm(Path("state").absolute(), request.get("call", 0), request.get("how", "kill"))
        value = getattr(program, request["do"])()
        shim.disarm()
        answer = {"value": value, "calls": len(shim.calls), "fired": shim.fired}
        Path(request["directory"], "answer.json").write_text(json.dumps(answer))
        os._exit(0)
    except BaseException:  # noqa: BLE001 — a fork must not fall back into the server's loop
        traceback.print_exc()
        os._exit(1)


def watch(child: int, ready: socket.socket, rests) -> None:
    """Until the child has ended: kill it when its tool asks for that, stop it when it is at rest, end it when it hangs."""
    tool = os.open("world/kill", os.O_RDWR | os.O_NONBLOCK)
    gate = os.open("world/gate", os.O_RDWR | os.O_NONBLOCK)
    ended = os.pidfd_open(child)
    deadline, is_ready = time.monotonic() + SECONDS_MAX, False
    try:
        while True:
            found, _, _ = select.select([ended, tool, ready], [], [], 0.05)
            if ended in found:
                return
            if tool in found or time.monotonic() > deadline:
                if tool in found:
                    os.read(tool, 4096)  # while the tool lives on, the wish would wait here for the next child
                os.kill(child, signal.SIGKILL)
                select.select([ended], [], [])
                os.write(gate, b"go\n")
                return
            if ready in found:
                is_ready |= b"READY=1" in ready.recv(4096)
            if is_ready and rests is not None and rests():
                os.kill(child, signal.SIGTERM)
                rests = None
    finally:
        for file in (tool, gate, ended):
            os.close(file)


main()
