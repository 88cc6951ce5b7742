"""The tools that these tests decide about: the same shapes as the built-in ones, and one operator's tool."""

from __future__ import annotations

import textwrap
from pathlib import Path

from perdure.policies.decisions import PolicySet
from perdure.policies.inline_tests import action_of
from perdure.policies.loading import load_policies
from perdure.policies.model import Decision, Facts, ToolSignature


def _schema(**properties):
    required = [name for name, schema in properties.items() if not schema.pop("optional", False)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _text(**more):
    return {"type": "string", **more}


SIGNATURES = {
    signature.name: signature
    for signature in (
        ToolSignature(name="list_files", effect="read", args_schema=_schema(path=_text()), paths={"path": "read"}),
        ToolSignature(name="read_file", effect="read", args_schema=_schema(path=_text()), paths={"path": "read"}),
        ToolSignature(
            name="search_files",
            effect="read",
            args_schema=_schema(text=_text(), path=_text(optional=True)),
            paths={"path": "read"},
        ),
        ToolSignature(
            name="write_file",
            effect="idempotent",
            args_schema=_schema(path=_text(), text=_text()),
            paths={"path": "write"},
        ),
        ToolSignature(
            name="append_file", effect="once", args_schema=_schema(path=_text(), text=_text()), paths={"path": "write"}
        ),
        ToolSignature(
            name="move_file",
            effect="once",
            args_schema=_schema(**{"from": _text(), "to": _text()}),
            paths={"from": "write", "to": "write"},
        ),
        ToolSignature(
            name="delete_file", effect="idempotent", args_schema=_schema(path=_text()), paths={"path": "write"}
        ),
        ToolSignature(
            name="run_command",
            effect="once",
            args_schema=_schema(
                command={"type": "array", "items": {"type": "string"}, "optional": True},
                script=_text(optional=True),
                cwd=_text(optional=True),
            ),
            paths={"cwd": "read"},
        ),
        ToolSignature(
            name="http_request",
            effect="once",
            args_schema=_schema(
                url=_text(),
                method={
                    "type": "string",
                    "enum": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
                    "default": "GET",
                    "optional": True,
                },
                body=_text(optional=True),
                json={"optional": True},
                headers={"type": "object", "optional": True},
            ),
        ),
        ToolSignature(
            name="notify",
            effect="once",
            args_schema=_schema(title=_text(), text=_text(optional=True), level=_text(optional=True)),
        ),
        ToolSignature(name="block_ip", effect="probeable", args_schema=_schema(ip=_text(format="ipv4"))),
        ToolSignature(
            name="tickets",
            effect="once",
            args_schema=_schema(
                **{
                    "count": {"type": "integer", "optional": True},
                    "share": {"type": "number", "optional": True},
                    "urgent": {"type": "boolean", "optional": True},
                    "labels": {"type": "array", "items": {"type": "string"}, "optional": True},
                    "extra": {"type": "object", "optional": True},
                    "due-date": _text(optional=True),
                    "in": _text(optional=True),
                }
            ),
        ),
        ToolSignature(name="undo", effect="idempotent", args_schema=_schema(action=_text())),
        ToolSignature(name="recall", effect="read", args_schema=_schema(query=_text())),
        ToolSignature(
            name="remember", effect="idempotent", args_schema=_schema(subject=_text(), attribute=_text(), value=_text())
        ),
    )
}


class Workspace:
    """A directory with policy files in it, and questions asked of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "policies").mkdir()

    def write(self, text: str, name: str = "policy.yaml") -> Path:
        path = self.root / "policies" / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    def load(self, *texts: str) -> PolicySet:
        for number, text in enumerate(texts):
            self.write(text, f"policy{number}.yaml")
        return load_policies([self.root / "policies"], SIGNATURES, workspace=self.root)

    def rules(self, *rules: str) -> PolicySet:
        return self.load("version: 1\nrules:\n" + "".join(f"  - {rule}\n" for rule in rules))


def decide(
    policies: PolicySet, tool: str, args: dict, *, grants=(), unmet=(), provenance=None, facts=None, **changes
) -> Decision:
    """The decision on a call, its paths taken as written (there are no links in these workspaces)."""
    import dataclasses

    action = action_of(SIGNATURES[tool], args, policies.workspace, provenance=provenance)
    action = dataclasses.replace(action, **changes)
    return policies.decide(
        action, Facts(**({"task": "triage", "planner": "model"} | (facts or {}))), grants=grants, unmet=unmet
    )
