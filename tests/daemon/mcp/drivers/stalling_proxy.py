"""Stands between Perdure and a real server, and stalls one call: `stalling_proxy.py DIRECTORY SERVER…`.

While DIRECTORY holds a file `stall`, a call of the tool that it names is held: `before TOOL` before the server gets it, `after
TOOL` once the server has answered it and before the answer is passed on. `ready` then appears in DIRECTORY."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

HERE = Path(sys.argv[1])
held: set[object] = set()


def stalls(when: str, message: dict) -> bool:
    try:
        wanted = (HERE / "stall").read_text().split()
    except FileNotFoundError:
        return False
    if message.get("method") == "tools/call" and message["params"]["name"] == wanted[1]:
        held.add(message["id"])
    return wanted[0] == when and message.get("id") in held


def stall() -> None:
    (HERE / "ready").write_text("")
    threading.Event().wait()


server = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert server.stdin is not None
assert server.stdout is not None


def answers() -> None:
    for line in server.stdout:
        if stalls("after", json.loads(line)):
            stall()
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


threading.Thread(target=answers, daemon=True).start()
for line in sys.stdin.buffer:
    if stalls("before", json.loads(line)):
        stall()
    server.stdin.write(line)
    server.stdin.flush()
server.stdin.close()
server.wait()
