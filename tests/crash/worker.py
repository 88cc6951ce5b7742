"""`python -m tests.crash.worker STATE OBSERVER`: the right agent once, as a program of its own. For strace."""

import sys
from pathlib import Path

from .agents import Agent, Observer

if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True)
    Agent(Path(sys.argv[1]), Observer(Path(sys.argv[2]))).run()
