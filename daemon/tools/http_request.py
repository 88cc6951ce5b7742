"""http_request: one HTTP request to a host that the policies allow, at an address pinned for it."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from perdure.daemon.config import Http
from perdure.daemon.secrets import credential
from perdure.daemon.tools import schemas
from perdure.daemon.tools.addresses import Pinned, is_public, parsed, pin
from perdure.daemon.tools.digests import action_digest
from perdure.daemon.tools.model import Call, Prepared, Result, ToolInterrupted, ToolRefused, ToolSpec
from perdure.errors import PerdureError
from perdure.state.events import JSON

if TYPE_CHECKING:
    import httpx

_READS = frozenset({"GET", "HEAD"})
_REDIRECTS_MAX = 5
_OURS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "idempotency-key", "accept-encoding", "te", "upgrade"}
)
_REPORTED = ("content-type", "location", "etag", "last-modified", "retry-after", "www-authenticate")
_HEADER_NAME = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
_SECRET = {
    "type": "object",
    "properties": {"secret": {"type": "string"}, "prefix": {"type": "string", "pattern": r"^[\x20-\x7e]*$"}},
    "required": ["secret"],
    "additionalProperties": False,
}

HTTP_REQUEST = ToolSpec(
    name="http_request",
    description=(
        "Make one HTTP request. Redirects to other hosts are not followed. A header's value, or any value in `json`, may be "
        '{"secret": NAME} (with "prefix" for a word such as "Bearer "), which is filled in only when the request is sent.'
    ),
    args_schema=schemas.args(
        "url",
        url=schemas.text("The absolute URL", maxLength=8_000),
        method={
            "type": "string",
            "enum": ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            "default": "GET",
        },
        headers={
            "type": "object",
            "maxProperties": 50,
            "propertyNames": {"pattern": _HEADER_NAME},
            "additionalProperties": {"anyOf": [{"type": "string", "pattern": r"^[\x20-\x7e\t]*$"}, _SECRET]},
            "description": "Header names and values",
        },
        body=schemas.text("The body as text"),
        json={"description": "The body as JSON, instead of `body`"},
        seconds={"type": "number", "description": "Given up after so many seconds", "exclusiveMinimum": 0},
    ),
    effect="once",
    free_text=("body",),
)


@dataclass(slots=True)
class _Sending:
    """Whether anything of the request may have left."""

    begun: bool = False

    async def trace(self, name: str, info: Mapping[str, Any]) -> None:
        if name.endswith("send_request_headers.started"):
            self.begun = True


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """GET and HEAD are of class `read`, every other method `once`; those carry the action's id as Idempotency-Key."""

    http: Http
    resolve: Callable[[str], str] = credential
    spec: ToolSpec = field(default=HTTP_REQUEST)

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        url, method = parsed(str(args["url"])), str(args.get("method", "GET"))
        if "body" in args and "json" in args:
            raise ToolRefused("send", "the request", "there are both `body` and `json`", "Pass one of them")
        for name in _headers(args):
            if name.lower() in _OURS:
                raise ToolRefused("send", f"the header {name}", "Perdure sets it itself", "Leave it out")
        for name in sorted(_secret_names([args.get("headers"), args.get("json")])):
            self._check_secret(name, url)
        effect: Literal["read", "once"] = "read" if method in _READS else "once"
        digest = action_digest(self.spec, args, paths={}, also={"url": str(url), "method": method})
        return Prepared(spec=self.spec, args=args, digest=digest, url=str(url), method=method, effect=effect)

    async def run(self, prepared: Prepared, call: Call) -> Result:
        import httpx

        asked = prepared.args.get("seconds")
        seconds = float(asked) if isinstance(asked, (int, float)) else self.http.seconds_max
        sending = _Sending()
        try:
            async with asyncio.timeout(min(seconds, self.http.seconds_max, call.seconds_max)):
                return await self._exchange(prepared, call, sending)
        except (ToolRefused, PerdureError) as error:
            return Result(ok=False, value=None, error=str(error))
        except (httpx.HTTPError, OSError, TimeoutError, ssl.SSLError) as error:
            cause = "no answer in time" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"
            if sending.begun and prepared.effect != "read":
                raise ToolInterrupted(
                    "finish", f"{prepared.method} {prepared.url}", cause, "The other side may have acted on it"
                ) from None
            return Result(ok=False, value=None, error=f"{prepared.method} {prepared.url}: {cause}")

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return None

    def _check_secret(self, name: str, url: httpx.URL) -> None:
        hosts = self.http.secrets.get(name)
        if hosts is None or url.host not in hosts:
            allowed = ", ".join(hosts) if hosts else "no host"
            raise ToolRefused(
                "send",
                f"the secret {name} to {url.host}",
                f"it may go to {allowed}",
                "http.secrets says which hosts get it",
            )
        if url.scheme != "https" and (url.host != "localhost" and not url.host.startswith("127.")):
            raise ToolRefused(
                "send", f"the secret {name} to {url.host}", "the connection would not be encrypted", "Use https"
            )

    async def _exchange(self, prepared: Prepared, call: Call, sending: _Sending) -> Result:
        import httpx

        url = parsed(prepared.url or "")
        pinned = await pin(url, self.http.private_hosts)
        headers = {name: self._filled(value) for name, value in _headers(prepared.args).items()}
        if prepared.effect != "read":
            headers["Idempotency-Key"] = call.action
        content = self._content(prepared.args, headers)
        verify = ssl.create_default_context() if url.scheme == "https" else False
        options: dict[str, Any] = {"trust_env": False, "follow_redirects": False, "verify": verify}
        async with httpx.AsyncClient(timeout=self.http.seconds_max, **options) as client:
            for _ in range(_REDIRECTS_MAX + 1):
                request = client.build_request(
                    prepared.method or "GET",
                    url.copy_with(host=pinned.address),
                    headers={
                        "User-Agent": "perdure",
                        "Accept-Encoding": "identity",
                        **headers,
                        "Host": url.netloc.decode(),
                    },
                    content=content,
                    extensions={"sni_hostname": url.host, "trace": sending.trace},
                )
                response = await client.send(request, stream=True)
                try:
                    target = _next(url, response) if prepared.effect == "read" else None
                    if target is None or _origin(target) != _origin(url):
                        return await self._told(prepared, url, response, pinned, target)
                finally:
                    await response.aclose()
                url = target
        return Result(ok=False, value=None, error=f"{prepared.url} redirects more than {_REDIRECTS_MAX} times")

    def _filled(self, value: JSON) -> str:
        if isinstance(value, dict):
            return f"{value.get('prefix', '')}{self.resolve(str(value['secret']))}"
        return str(value)

    def _content(self, args: Mapping[str, JSON], headers: dict[str, str]) -> bytes | None:
        if "json" in args:
            headers.setdefault("Content-Type", "application/json")
            return json.dumps(self._with_secrets(args["json"]), ensure_ascii=False).encode()
        return str(args["body"]).encode() if "body" in args else None

    def _with_secrets(self, value: JSON) -> JSON:
        if _is_reference(value):
            return self._filled(value)
        if isinstance(value, dict):
            return {name: self._with_secrets(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._with_secrets(item) for item in value]
        return value

    async def _told(
        self, prepared: Prepared, url: httpx.URL, response: httpx.Response, pinned: Pinned, target: httpx.URL | None
    ) -> Result:
        data, truncated = bytearray(), False
        async for part in response.aiter_bytes():
            data += part
            if len(data) > self.http.bytes_max:
                del data[self.http.bytes_max :]
                truncated = True
                break
        value: dict[str, JSON] = {
            "status": response.status_code,
            "url": str(url),
            "address": pinned.address,
            "private": not is_public(pinned.address),
            "headers": {name: response.headers[name] for name in _REPORTED if name in response.headers},
            **_body(bytes(data), response, truncated=truncated),
        }
        error = None
        if target is not None:
            error = f"{prepared.url} redirects to {target}, another host, which the policies must decide on: propose it"
        elif response.status_code >= 400:
            error = f"{prepared.method} {prepared.url}: {response.status_code} {response.reason_phrase}"
        return Result(ok=error is None, value=value, error=error, truncated=truncated)


def _headers(args: Mapping[str, JSON]) -> dict[str, JSON]:
    headers = args.get("headers")
    return headers if isinstance(headers, dict) else {}


def _is_reference(value: JSON) -> bool:
    return isinstance(value, dict) and "secret" in value and set(value) <= {"secret", "prefix"}


def _secret_names(value: Any) -> set[str]:
    if _is_reference(value):
        return {str(value["secret"])}
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {name for item in items for name in _secret_names(item)}


def _next(url: httpx.URL, response: httpx.Response) -> httpx.URL | None:
    """Where the response redirects to."""
    if response.status_code not in (301, 302, 303, 307, 308) or "location" not in response.headers:
        return None
    return url.join(response.headers["location"]).copy_with(fragment=None)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _body(data: bytes, response: httpx.Response, *, truncated: bool) -> dict[str, JSON]:
    kind = response.headers.get("content-type", "")
    if "json" in kind and not truncated:
        try:
            return {"json": json.loads(data)}
        except ValueError:
            pass  # it only says so: then it is text
    if b"\0" in data:
        return {"base64": base64.b64encode(data).decode()}
    return {
        "text": data.decode(response.charset_encoding or "utf-8", errors="replace")
        if _known(response)
        else data.decode(errors="replace")
    }


def _known(response: httpx.Response) -> bool:
    try:
        "".encode(response.charset_encoding or "utf-8")
    except LookupError:
        return False
    return True
