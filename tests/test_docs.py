"""The documentation says what the code does: every command, setting, key, event and format is in it."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
from pydantic import BaseModel

from perdure.daemon.config import Config
from perdure.daemon.front_matter import FrontMatter, PostconditionEntry, StepEntry
from perdure.policies import reading

FILLED_IN = {"workspace", "digest"}  # not of the file


@pytest.fixture(scope="module")
def docs(repository: Path) -> Path:
    return repository / "docs"


@pytest.fixture(scope="module")
def generate(docs: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location("generate", docs / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_generated_parts_are_current(generate: ModuleType) -> None:
    stale = [path.name for path, text in generate.pages().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "`make docs` writes them anew"


def test_every_command_says_what_it_does(generate: ModuleType) -> None:
    silent = [name for name, command in generate.commands() if not command.help]
    assert silent == []


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for each in get_args(annotation):
        yield from models_in(each)


def keys_of(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    """Every key that a file may hold, at any depth."""
    seen.add(model)
    for name, field in model.model_fields.items():
        if name not in FILLED_IN:
            yield field.alias or name
        for inner in models_in(field.annotation):
            if inner not in seen:
                yield from keys_of(inner, seen)


def undocumented(names: Iterator[str] | tuple[str, ...], page: Path) -> list[str]:
    text = page.read_text()
    return sorted({name for name in names if not re.search(rf"(?<![A-Za-z_]){re.escape(name)}(?![A-Za-z_])", text)})


def test_every_setting_is_documented(docs: Path) -> None:
    assert undocumented(keys_of(Config, set()), docs / "configuration.md") == []


@pytest.mark.parametrize("model", [FrontMatter, StepEntry, PostconditionEntry])
def test_every_key_of_a_task_is_documented(docs: Path, model: type[BaseModel]) -> None:
    assert undocumented(keys_of(model, set()), docs / "tasks.md") == []


def test_every_key_of_a_policy_is_documented(docs: Path) -> None:
    keys = (*reading.FILE_KEYS, *reading.RULE_KEYS, *reading.TEST_KEYS, *reading.REQUIRE_KEYS)
    assert undocumented(keys, docs / "policies.md") == []


def test_the_shipped_policies_are_documented(docs: Path, repository: Path) -> None:
    names = tuple(path.stem for path in (repository / "policies" / "library").glob("*.yaml"))
    assert names
    assert undocumented(names, docs / "policies.md") == []


def test_every_json_format_is_documented(docs: Path, repository: Path) -> None:
    kinds = set()
    for path in (repository / "daemon" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit":
                first = node.args[0]
                assert isinstance(first, ast.Constant), (
                    f"{path.name}:{node.lineno}: the kind of a JSON object is a constant"
                )
                kinds.add(first.value)
    assert kinds
    text = (docs / "json.md").read_text()
    assert sorted(kind for kind in kinds if f"`{kind}`" not in text) == []


def test_links_between_pages_lead_somewhere(docs: Path, repository: Path) -> None:
    broken = [
        f"{page.name} -> {target}"
        for page in (repository / "README.md", *docs.glob("*.md"))
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []


def test_files_named_in_the_pages_exist(docs: Path, repository: Path) -> None:
    named = re.compile(r"`((?:daemon|memory|policies|state|systemd|tests|docs|src)/[\w./@-]*\w/?)`")
    missing = [
        f"{page.name}: {name}"
        for page in (repository / "README.md", *docs.glob("*.md"))
        for name in named.findall(page.read_text())
        if not (repository / name).exists() and not name.startswith("state/")
    ]
    assert missing == []
