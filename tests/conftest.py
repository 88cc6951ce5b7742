"""What every test gets: a network that ends at this machine, an environment without the caller's secrets, and the samples."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLES = REPOSITORY.parent / "shared" / "samples"

# Set before anything is imported: no library may look for a model hub, and no test may find a real key by chance.
os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "ANONYMIZED_TELEMETRY": "False"})
for name in [name for name in os.environ if name.endswith(("_API_KEY", "_TOKEN")) or name.startswith("PERDURE_")]:
    del os.environ[name]
for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY"):
    os.environ.pop(name, None)


Found = TypeVar("Found")


# The same examples at every run, so that a change is judged by what it changes. HYPOTHESIS=random looks for new ones.
# How long an example takes says what else the machine does, and nothing about the code.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("seeded", patient, derandomize=True)
settings.register_profile("random", patient, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS", "seeded"))


class NetworkForbiddenError(RuntimeError):
    """A test tried to leave this machine."""


def _guard(event: str, args: tuple[object, ...]) -> None:
    """An audit hook cannot be removed or patched away, and sees every socket of this process, asyncio's too."""
    if event == "socket.getaddrinfo":
        host = args[0]
        if isinstance(host, bytes):
            host = host.decode()
        if host not in {None, "", "localhost", socket.gethostname()} and not _is_here(str(host)):
            raise NetworkForbiddenError(f"tests may not look up {host}; use a server on 127.0.0.1")
    elif event in {"socket.connect", "socket.sendto"}:
        address = args[1]
        if isinstance(address, tuple) and address and not _is_here(str(address[0])):
            raise NetworkForbiddenError(f"tests may not reach {address}; use a server on 127.0.0.1")


def _is_here(host: str) -> bool:
    if host in {"localhost", "localhost.localdomain"}:
        return True
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.endswith((".invalid", ".localhost"))  # names that exist nowhere: the look-up itself is the test
    return found.is_loopback or found.is_unspecified


sys.addaudithook(_guard)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that the tests run in."""
    return REPOSITORY


@pytest.fixture(scope="session")
def samples() -> Path:
    """The real logs that lie beside the repository; a clone that stands alone has none."""
    if not SAMPLES.is_dir():
        pytest.skip(f"the real sample logs are not here ({SAMPLES}); the example's own log is still tested")
    return SAMPLES


@pytest.fixture(scope="session")
def eventually() -> Callable[..., object]:
    """Waits for what another process does: `eventually(condition)` returns the condition's first true value."""

    def wait(condition: Callable[[], Found | None], *, seconds_max: float = 60.0) -> Found:
        deadline = time.monotonic() + seconds_max
        while not (found := condition()):
            assert time.monotonic() < deadline, f"not within {seconds_max} s: {condition}"
            threading.Event().wait(0.02)
        return found

    return wait
