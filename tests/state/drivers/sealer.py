"""Backs a ledger up into a directory of segments again and again, each time in a process of its own that ends itself with
SIGKILL at the n-th thing it does to a file there: n is 1, 2, 3 … until one comes to its end. What it does is counted by the
interpreter's own audit events, so nothing of it is replaced. Says how each ended, and goes on when told to."""

import itertools
import os
import signal
import sys
from pathlib import Path

from perdure.state.sealing import seal

state_dir, directory = Path(sys.argv[1]), Path(sys.argv[2])


def seal_until(number):
    counter = itertools.count(1)

    def hook(event, arguments):
        ours = event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(str(directory))
        if ours and next(counter) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    seal(state_dir, directory, reseal=True, segment_events=200)


for number in itertools.count(1):
    child = os.fork()
    if child == 0:
        seal_until(number)
        sys.exit(0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
    sys.stdout.flush()
    sys.stdin.readline()
