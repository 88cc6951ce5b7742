"""`python -m perdure.daemon.cli`."""

from __future__ import annotations

from perdure.daemon.cli import main

main()
