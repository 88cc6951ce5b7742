"""A process that owns a workspace until it is told otherwise: prints its fence, then waits for its standard input to close."""

import subprocess
import sys
from pathlib import Path

from perdure.state.ownership import Owner

owner = Owner.acquire(Path(sys.argv[1]))
child = subprocess.Popen(["sleep", "1000"]) if "--with-child" in sys.argv else None
print(owner.fence, child.pid if child else 0, flush=True)
sys.stdin.read()
