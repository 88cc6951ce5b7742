"""Where a URL leads: reading it the one way that policies and sockets agree on, and pinning its host's address."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from perdure.daemon.tools.model import ToolRefused

if TYPE_CHECKING:
    import httpx

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_PLAIN_URL = re.compile(r"https?://[!-~]+", re.IGNORECASE | re.ASCII)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Pinned:
    """The address that a host name was found to have, used for the whole request. `private`: not of the public internet."""

    address: str
    private: bool


def parsed(url: str) -> httpx.URL:
    """The URL, normalised. Raises ToolRefused for what two readers might read differently: characters outside ASCII,
    blanks, backslashes, user names, host names with a final dot."""
    import httpx

    if _PLAIN_URL.fullmatch(url) is None or "\\" in url:
        raise _refused(url, "it is not a plain http:// or https:// URL in ASCII (percent-encode the rest)")
    try:
        read, again = httpx.URL(url), urlsplit(url)
        same = read.host.lower() == (again.hostname or "") and read.port == (
            again.port if again.port != _default_port(read) else None
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise _refused(url, str(error)) from None
    if read.userinfo or "@" in again.netloc:
        raise _refused(url, "it holds a user name or password: use a header with {secret: NAME}")
    if not same or not read.host or read.host.endswith(".") or "%" in again.netloc:
        raise _refused(url, "its host can be read in more than one way")
    return read.copy_with(fragment=None)


def _default_port(url: httpx.URL) -> int:
    return 443 if url.scheme == "https" else 80


async def pin(url: httpx.URL, private_hosts: Collection[str]) -> Pinned:
    """Resolve the host once. An address outside the public internet is for hosts that say so themselves (an address,
    localhost) or that the configuration names; otherwise whoever holds the name could point it at the inside. Raises
    ToolRefused, OSError where the name does not resolve."""
    found = await asyncio.get_running_loop().getaddrinfo(
        url.host, url.port or _default_port(url), type=socket.SOCK_STREAM
    )
    addresses = [str(entry[4][0]) for entry in found]
    private = next((address for address in addresses if not is_public(address)), None)
    if private is not None and not (_is_address(url.host) or url.host == "localhost" or url.host in private_hosts):
        raise ToolRefused(
            "reach",
            url.host,
            f"it resolves to {private}, which is not an address of the public internet",
            "If that is meant, name the host in http.private_hosts",
        )
    return Pinned(addresses[0], private is not None)


def is_public(address: str) -> bool:
    """Whether the address is of the public internet; one that carries another (mapped, 6to4, Teredo, NAT64) is not."""
    parsed_address: _Address = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed_address, ipaddress.IPv6Address) and (
        parsed_address.ipv4_mapped or parsed_address.sixtofour or parsed_address.teredo or parsed_address in _NAT64
    ):
        return False
    return parsed_address.is_global and not parsed_address.is_multicast


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refused(url: str, cause: str) -> ToolRefused:
    return ToolRefused("use the URL", repr(url)[:300], cause, "Pass a plain absolute URL")
