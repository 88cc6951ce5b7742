"""Secrets: where they come from (the environment or systemd's credentials, never the workspace), and how they stay out
of results."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from perdure.daemon.config import Config, SecretReference
from perdure.errors import PerdureError
from perdure.state.events import JSON

CREDENTIAL_BYTES_MAX: Final = 65_536
REDACTED_LENGTH_MIN: Final = 4  # shorter secrets would redact ordinary text everywhere


def credential(name: str, environment: Mapping[str, str] | None = None) -> str:
    """The secret called `name`: the file of that name in $CREDENTIALS_DIRECTORY, or else the environment variable.

    Raises PerdureError, which never holds any part of a secret.
    """
    variables = os.environ if environment is None else environment
    directory = variables.get("CREDENTIALS_DIRECTORY")
    if "/" in name or name in {"", ".", ".."}:
        raise PerdureError(
            "read", f"the secret {name!r}", "that is not a name", "Name an environment variable or credential"
        )
    if directory:
        try:
            with Path(directory, name).open("rb") as file:
                content = file.read(CREDENTIAL_BYTES_MAX + 1)
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise PerdureError(
                "read", f"the credential {name}", str(error.strerror), "Check LoadCredential= in the unit"
            ) from None
        if len(content) > CREDENTIAL_BYTES_MAX:
            raise PerdureError(
                "read", f"the credential {name}", "it is too large", f"At most {CREDENTIAL_BYTES_MAX} bytes"
            )
        try:
            secret = content.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise PerdureError("read", f"the credential {name}", "it is not UTF-8", "Secrets are text") from None
        if secret:
            return secret
    secret = variables.get(name, "")
    if secret:
        return secret
    raise PerdureError(
        "find",
        f"the secret {name}",
        "neither $CREDENTIALS_DIRECTORY nor the environment has it",
        f"Set {name} in the daemon's environment, or LoadCredential={name}:FILE in its unit",
    )


def redact(text: str, secrets: Mapping[str, str]) -> str:
    """`text` with each value of `secrets` (name → value) replaced by `{secret: NAME}`, the longest first."""
    for name, value in sorted(secrets.items(), key=lambda item: (-len(item[1]), item[0])):
        if len(value) >= REDACTED_LENGTH_MIN:
            text = text.replace(value, f"{{secret: {name}}}")
    return text


def holds_secret(text: str, secrets: Mapping[str, str]) -> str | None:
    """The name of a secret whose value stands in `text`, or None."""
    for name, value in sorted(secrets.items()):
        if len(value) >= REDACTED_LENGTH_MIN and value in text:
            return name
    return None


def known_secrets(config: Config) -> dict[str, str]:
    """Every secret that the configuration names and that can be had now, name to value."""
    names = {name for tool in config.tools.values() for name in tool.credentials} | set(config.http.secrets)
    for server in config.mcp.values():
        names |= set(server.credentials)
        names |= {value.secret for value in server.headers.values() if not isinstance(value, str)}
    if isinstance(config.notify.webhook, SecretReference):
        names.add(config.notify.webhook.secret)
    model = config.model
    while model is not None:
        names |= {model.key} if model.key is not None else set()
        model = model.fallback
    secrets = {}
    for name in sorted(names):
        with contextlib.suppress(PerdureError):
            secrets[name] = credential(name)
    return secrets


def redactor(config: Config) -> Callable[[JSON], JSON]:
    """A function that takes the values of the configuration's secrets out of any JSON, keys included."""
    secrets = known_secrets(config)
    return lambda value: redacted(value, secrets)


def redacted(value: JSON, secrets: Mapping[str, str]) -> JSON:
    """`value` with each secret's value replaced in every text of it."""
    if not secrets:
        return value
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, list):
        return [redacted(each, secrets) for each in value]
    if isinstance(value, dict):
        return {redact(key, secrets): redacted(each, secrets) for key, each in value.items()}
    return value
