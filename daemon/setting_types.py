"""Kinds of values that settings have: paths of the workspace, names of secrets and variables, time zones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import tzlocal
from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from perdure.daemon.validation import ShownSecretError

_CREDENTIAL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", re.ASCII)
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_LOOKS_LIKE_A_KEY = re.compile(
    r"(sk|pk|ghp|gho|xox[abp]|AKIA|AIza|glpat)[-_A-Z0-9]|(?![A-Z0-9_]+$)[A-Za-z0-9_-]{40,}", re.ASCII
)


def _in_workspace(path: object, info: ValidationInfo) -> object:
    """`path` made absolute against the workspace, with links resolved as far as it exists."""
    if info.context is None or not isinstance(path, str | Path):  # a section's defaults outside of `load_config`
        return path
    if "\0" in str(path) or not str(path):
        raise ValueError("a path")
    workspace: Path = info.context["workspace"]
    return str((workspace / Path(path).expanduser()).resolve())


WorkspacePath = Annotated[Path, BeforeValidator(_in_workspace)]


def _credential_name(name: str) -> str:
    if _CREDENTIAL_NAME.fullmatch(name) is None or _LOOKS_LIKE_A_KEY.match(name):
        raise ShownSecretError("the name of an environment variable or systemd credential, not the secret itself")
    return name


CredentialName = Annotated[str, AfterValidator(_credential_name)]


def _variable_name(name: str) -> str:
    if _VARIABLE_NAME.fullmatch(name) is None:
        raise ValueError("the name of an environment variable: letters, digits and _")
    return name


VariableName = Annotated[str, AfterValidator(_variable_name)]


_FIELD = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)


def _field_names(trusted: bool | tuple[str, ...]) -> bool | tuple[str, ...]:
    for name in trusted if isinstance(trusted, tuple) else ():
        if _FIELD.fullmatch(name) is None:
            raise ValueError(
                'fields of the result as names with dots between (["count", "report.path"]), or true or false'
            )
    return trusted


# Whether what a tool returns is trusted: all of it, none, or these fields of it.
Trusted = Annotated[bool | tuple[str, ...], AfterValidator(_field_names)]


def trust_of(trusted: bool | tuple[str, ...]) -> dict[str, Any]:
    """The setting as a tool's specification has it."""
    return {"trusted": trusted is True, "trusted_fields": trusted if isinstance(trusted, tuple) else ()}


def zone_name(name: str) -> str:
    """`name`, where it is a time zone; raises ValueError where it is none."""
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise ValueError("a time zone of the IANA database, such as Europe/Berlin or UTC") from None
    return name


ZoneName = Annotated[str, AfterValidator(zone_name)]


def machine_zone() -> str:
    """The machine's own time zone, or UTC where it has none that the IANA database knows."""
    try:
        return zone_name(tzlocal.get_localzone_name())
    except (KeyError, ValueError, OSError):
        return "UTC"
