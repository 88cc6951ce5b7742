"""`perdure status` must answer at once: what it may not import is checked, not timed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "chromadb", "onnxruntime", "numpy", "pydantic_ai", "openai", "anthropic", "httpx", "pydantic", "tiktoken", "tokenizers",
    "tree_sitter", "cel_expr_python", "jsonschema", "sqlite_utils", "apscheduler", "mcp",
}  # fmt: skip

PROGRAM = """
import sys
sys.argv = ["perdure", *{arguments!r}]
from perdure.daemon.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["inbox"], ["inbox", "show", "Q0EST1"], ["ledger", "tail"], ["ledger", "show"], ["--help"]],
    ids=" ".join,
)
def test_looking_imports_nothing_heavy(parked, arguments):
    program = PROGRAM.format(arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=parked.root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.splitlines()[-1].split()[1:]) if "LOADED" in done.stdout else set()
    assert "click" in loaded
    assert not loaded & HEAVY


def test_the_daemon_imports_what_every_workspace_needs_and_no_more():
    """Providers, MCP servers, the vector store, web requests and signing come when a workspace uses them."""
    program = "import sys, perdure.daemon.service; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert {"pydantic", "apscheduler"} <= loaded
    assert not loaded & {
        "chromadb", "onnxruntime", "pydantic_ai", "openai", "anthropic", "httpx", "httpx2", "tiktoken", "tokenizers", "mcp",
        "cryptography",
    }  # fmt: skip


def test_the_module_runs_as_a_program(parked):
    done = subprocess.run(
        [sys.executable, "-m", "perdure.daemon.cli", "status"],
        cwd=parked.root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "log-triage" in done.stdout
