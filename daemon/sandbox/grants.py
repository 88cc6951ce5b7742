"""Which paths a confined program may use: the system's programs, and the declared roots less what is never a tool's."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from perdure.daemon.sandbox import landlock

Grants = tuple[tuple[str, int], ...]

_CHILDREN_MAX = 10_000

# What programs need to start and to find their way: no more of /etc than that, because passwords and keys lie there too.
_RUN = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt")
_READ = (
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/dev/random",
    "/dev/urandom",
    *(
        f"/etc/{name}"
        for name in [
            "alternatives",
            "adjtime",
            "bash.bashrc",
            "ca-certificates",
            "ca-certificates.conf",
            "debian_version",
            "fonts",
            "gai.conf",
            "group",
            "host.conf",
            "hostname",
            "hosts",
            "inputrc",
            "ld.so.cache",
            "ld.so.conf",
            "ld.so.conf.d",
            "locale.alias",
            "localtime",
            "login.defs",
            "lsb-release",
            "machine-id",
            "magic",
            "mime.types",
            "nsswitch.conf",
            "os-release",
            "passwd",
            "perl",
            "pki",
            "profile",
            "profile.d",
            "protocols",
            "python3",
            "resolv.conf",
            "rpc",
            "services",
            "shells",
            "ssl/certs",
            "ssl/openssl.cnf",
            "terminfo",
            "timezone",
            "xdg",
        ]
    ),
)
_NETWORK_READ = ("/run/systemd/resolve", "/run/resolvconf", "/run/nscd", "/run/systemd/userdb")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty")


def system_grants(*, network: bool) -> Grants:
    """Read and run the system's programs and Perdure's own Python; with `network`, also find name servers."""
    prefixes = {sys.prefix, sys.base_prefix} - {"/", ""}
    return (
        *((path, landlock.RUN) for path in (*_RUN, *sorted(prefixes))),
        *((path, landlock.READ) for path in (*_READ, *(_NETWORK_READ if network else ()))),
        *((path, landlock.READ | landlock.WRITE_FILE) for path in _DEVICES),
    )


def root_grants(read: Sequence[Path], write: Sequence[Path], *, hidden: Sequence[Path], kept: Sequence[Path]) -> Grants:
    """Grants for declared roots: `hidden` is neither read nor written, `kept` not written.

    Landlock only ever allows, and always whole hierarchies. So a root around something excluded is granted child by child;
    its names can still be listed, but nothing can be made directly in it."""
    grants: list[tuple[str, int]] = []
    for root in read:
        grants += [(str(part), landlock.RUN) for part in _without(root, hidden)]
        if _encloses(root, hidden):
            grants.append((str(root), landlock.READ_DIR))
    for root in write:
        grants += [(str(part), landlock.WRITE) for part in _without(root, (*hidden, *kept))]
    return tuple(grants)


def _encloses(root: Path, excluded: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) and path != root for path in excluded)


def _without(root: Path, excluded: Sequence[Path]) -> Iterator[Path]:
    """The parts of `root` that neither are, nor are in, nor hold anything of `excluded`."""
    if any(root.is_relative_to(path) for path in excluded):
        return
    if not _encloses(root, excluded):
        yield root
        return
    try:
        names = sorted(path.name for path in root.iterdir())
    except OSError:
        return
    for name in names[:_CHILDREN_MAX]:
        if not (root / name).is_symlink():
            yield from _without(root / name, excluded)
