"""A process that writes to a ledger for ever and says on standard output what was acknowledged: the last sequence number."""

import itertools
import sys
import time
from pathlib import Path

from perdure.state.events import AlarmRaised
from perdure.state.ledger import Ledger
from perdure.state.ownership import Owner

state_dir = Path(sys.argv[1])
owner = Owner.acquire(state_dir)
ledger = Ledger.open(state_dir / "ledger.db", now=lambda: time.time_ns() // 1000, fence=owner.fence)
for n in itertools.count():
    events = ledger.commit(AlarmRaised(code=f"{n}", payload="x" * (n % 3000)))
    sys.stdout.write(f"{events[-1].seq}\n")
    sys.stdout.flush()
