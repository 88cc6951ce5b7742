"""What `perdure doctor` says of one thing that it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["good", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing looked at. `mend` is empty where nothing needs to be done."""

    about: str
    verdict: Verdict
    found: str
    mend: str = ""
