"""The names of what lies in a workspace and in its state directory. Nothing is imported, so whoever only looks stays quick."""

from __future__ import annotations

from typing import Final

CONFIG_NAME: Final = "perdure.toml"
POLICIES: Final = "policies"
TASKS: Final = "tasks"
STOP_FILE: Final = "STOP"  # while a file of this name lies in the workspace, nothing runs
LEDGER: Final = "ledger.db"  # in the state directory
