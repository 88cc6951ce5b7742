"""The process that runs an operator's own check: `python_check.py FILE FUNCTION`, with what it may know as JSON on stdin.

It prints `{"objection": null}` where the function returns true or None, else what is wrong in words."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path


def main() -> int:
    """Run the function; exit 1 where it cannot be run."""
    file, name = Path(sys.argv[1]), sys.argv[2]
    known = json.load(sys.stdin)
    specification = importlib.util.spec_from_file_location("check", file)
    if specification is None or specification.loader is None:
        sys.stderr.write(f"{file} is no Python file\n")
        return 1
    sys.path.insert(0, str(file.parent))
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    answer = getattr(module, name)(known)
    if answer is None or answer is True:
        objection = None
    elif answer is False:
        objection = "it returned False"
    else:
        objection = str(answer)[:2000]
    sys.stdout.write(json.dumps({"objection": objection}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
