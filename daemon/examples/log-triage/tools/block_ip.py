"""Adds one IPv4 address to the deny list, once: `block_ip.py ADDRESS FILE`. Blocking it again changes nothing."""

from __future__ import annotations

import ipaddress
import os
import sys
from pathlib import Path


def main() -> None:
    """Add the address unless it is there."""
    address, path = str(ipaddress.IPv4Address(sys.argv[1])), Path(sys.argv[2])
    with path.open("a+", encoding="ascii") as file:
        file.seek(0)
        if address in file.read().split():
            sys.stdout.write(f"{address} is already in {path}\n")
            return
        file.write(f"{address}\n")
        file.flush()
        os.fsync(file.fileno())
    sys.stdout.write(f"{address} added to {path}\n")


if __name__ == "__main__":
    main()
