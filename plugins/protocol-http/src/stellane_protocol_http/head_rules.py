"""What RFC 9110 and RFC 9112 let us check ourselves about a request head.

The parser is young; nothing a smuggled request could live on is left to it alone. Every rule
ends the connection: a head that is wrong here may have been framed differently by whoever
forwarded it (RFC 9112 section 11.2).
"""

from __future__ import annotations

import re

from stellane.config import LimitsConfig
from stellane.errors import RemoteProtocolError
from stellane_protocol_http.codec import RequestHead

METHOD_BYTES_MAX = 32
"""Longest method name accepted, bytes; longer: 501."""

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# RFC 3986 section 3.2.2 and 3.2.3, without userinfo: reg-name, IPv4 or [IPv6], then an optional port.
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+(?:%25[0-9A-Za-z\-._~%]+)?\]|(?:[0-9A-Za-z\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?"
)
_TARGET_BYTES = bytes(byte for byte in range(0x21, 0x7F) if byte != 0x23)  # RFC 9112 section 3.2: no '#'
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/?#]*)(/[^?]*)?(?:\?(.*))?", re.DOTALL)
_LENGTH = re.compile(rb"[0-9]{1,18}")

METHODS = {
    name: name.decode() for name in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE")
}
_TLS_HANDSHAKE = b"\x16\x03"
_OTHER_VERSION = re.compile(rb" HTTP/[02-9]\.[0-9]\Z")
_CACHED_VALUES_MAX = 1024
_CACHED_BYTES_MAX = 256


class HeadRules:
    """The checks of one worker, with what it has already found valid remembered."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._hosts: set[bytes] = set()
        self._targets: set[bytes] = set()
        # A head of fewer bytes than the smallest of the limits cannot break any of them.
        self._small_head_bytes = min(limits.request_line_bytes_max, limits.header_bytes_max)

    def method(self, name: bytes) -> str:
        """A method that is not in METHODS, as text. Raises RemoteProtocolError 400, or 501 when it is too long."""
        if len(name) > METHOD_BYTES_MAX:
            raise RemoteProtocolError(f"method of {len(name)} bytes; at most {METHOD_BYTES_MAX}", 501)
        if name == b"CONNECT":
            raise RemoteProtocolError("CONNECT: this server is not a proxy", 501)
        if _TOKEN.fullmatch(name) is None:
            raise RemoteProtocolError("method is not a token")
        return name.decode("ascii")

    def check(self, head: RequestHead, received_bytes: int) -> None:
        """Check everything but the method and the body's size. Raises RemoteProtocolError.

        `received_bytes`: how many bytes this head can have had at most.
        """
        if head.http_version[:2] != b"1.":
            raise _other_version()
        fields = head.headers
        hosts = fields.getall(b"host")
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            self._check_host(hosts, head.http_version)
        target = head.target
        if target not in self._targets:
            self._check_target(target)
        if received_bytes > self._small_head_bytes or len(fields) > self._limits.header_fields_max:
            self._check_sizes(head)
        if fields.get(b"content-length") is not None or fields.get(b"transfer-encoding") is not None:
            self._check_framing(head)

    def brings_ids(self, head: RequestHead) -> bool:
        """Whether the request names itself or its trace (`Exchange.brings_ids`)."""
        get = head.headers.get
        return get(b"x-request-id") is not None or get(b"traceparent") is not None

    def path_and_query(self, head: RequestHead, method: str) -> tuple[bytes, bytes]:
        """The path and query of a target in any of its forms (RFC 9112 section 3.2)."""
        if head.target[:1] == b"/":
            return head.path, head.query
        if head.target == b"*" and method == "OPTIONS":
            return b"*", b""
        match = _ABSOLUTE.fullmatch(head.target)
        if match is None:
            raise RemoteProtocolError("request target is neither a path nor an http URI")
        # Two names for one host is how a request reaches the wrong virtual host behind a proxy.
        host = head.headers.get(b"host")
        if host is not None and host.lower() != match[1].lower():
            raise RemoteProtocolError("the request target's authority differs from Host")
        return match[2] or b"/", match[3] or b""

    def head_too_large(self, line: bytes, line_bytes_max: int) -> RemoteProtocolError:
        """What to say when the parser has passed a limit of its own before ours were looked at.

        `line` is the request line, as far as it came; `line_bytes_max` the longest line the parser takes.
        """
        limits = self._limits
        if len(line) > limits.request_line_bytes_max:
            return line_too_long(limits.request_line_bytes_max)
        return RemoteProtocolError(
            f"header over limits.header_bytes_max = {limits.header_bytes_max} or limits.header_fields_max = "
            f"{limits.header_fields_max}, or a field over {line_bytes_max} bytes",
            431,
        )

    def _check_host(self, hosts: list[bytes], version: bytes) -> None:
        if not hosts and version == b"1.0":
            return
        if len(hosts) != 1:
            raise RemoteProtocolError(f"{len(hosts)} Host fields; an HTTP/1.1 request has exactly one")
        if _HOST.fullmatch(hosts[0]) is None:
            raise RemoteProtocolError("Host is not a host name or address with an optional port")
        _remember(self._hosts, hosts[0])

    def _check_target(self, target: bytes) -> None:
        if target.translate(None, _TARGET_BYTES):
            raise RemoteProtocolError("request target has a byte that is not allowed in it")
        _remember(self._targets, target)

    def _check_sizes(self, head: RequestHead) -> None:
        limits = self._limits
        fields = head.headers.to_list()
        line_bytes = len(head.method) + len(head.target) + len(b"  HTTP/1.1")
        if line_bytes > limits.request_line_bytes_max:
            raise line_too_long(limits.request_line_bytes_max)
        if len(fields) > limits.header_fields_max:
            raise RemoteProtocolError(f"more than limits.header_fields_max = {limits.header_fields_max} fields", 431)
        if sum(len(name) + len(value) + 4 for name, value in fields) > limits.header_bytes_max:
            raise RemoteProtocolError(f"header over limits.header_bytes_max = {limits.header_bytes_max}", 431)

    def _check_framing(self, head: RequestHead) -> None:
        lengths = head.headers.getall(b"content-length")
        codings = head.headers.getall(b"transfer-encoding")
        if len(lengths) > 1:
            raise RemoteProtocolError("more than one Content-Length")
        if lengths and _LENGTH.fullmatch(lengths[0]) is None:
            raise RemoteProtocolError("Content-Length is not a number of at most 18 digits")
        if not codings:
            return
        if lengths:
            raise RemoteProtocolError("both Content-Length and Transfer-Encoding")
        if head.http_version == b"1.0":
            raise RemoteProtocolError("Transfer-Encoding in an HTTP/1.0 request")
        if len(codings) > 1 or codings[0].strip().lower() != b"chunked":
            raise RemoteProtocolError("Transfer-Encoding: only a single 'chunked' is understood", 501)


def refuse_tls(data: bytes) -> None:
    """Raise RemoteProtocolError when a head begins as a TLS handshake does (RFC 8446 section 5.1): it never ends."""
    if data.startswith(_TLS_HANDSHAKE):
        raise RemoteProtocolError("a TLS handshake, and TLS is not spoken here: use http:// or a proxy that ends TLS")


def unreadable(line: bytes, reason: str) -> RemoteProtocolError:
    """What to say of a head that the parser did not take.

    `line` is its request line as far as it came. One of another version, such as the preface of HTTP/2
    (RFC 9113 section 3.4), is no broken request: 505 tells its client to try HTTP/1.1.
    """
    return RemoteProtocolError(reason) if _OTHER_VERSION.search(line) is None else _other_version()


def _other_version() -> RemoteProtocolError:
    return RemoteProtocolError("this server speaks HTTP/1.1 and 1.0", 505)


def line_too_long(limit_bytes: int) -> RemoteProtocolError:
    """The error of a request line over the limit."""
    return RemoteProtocolError(f"request line over limits.request_line_bytes_max = {limit_bytes}", 414)


def _remember(valid: set[bytes], value: bytes) -> None:
    """Clients repeat hosts and targets; what was found valid is not checked again."""
    if len(valid) >= _CACHED_VALUES_MAX:
        valid.clear()
    if len(value) <= _CACHED_BYTES_MAX:
        valid.add(value)
