"""What the payload of each record type holds: msgpack maps with short keys.

Unknown keys are skipped and missing ones take their default, so a later version may add
fields without a new format. Never pickle, never JSON: the content comes from strangers.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import msgspec

from stellane.abc.recovery import EntryState
from stellane.recovery.context import Attempt
from stellane.recovery.record import RecordType

TRACESTATE_BYTES_MAX = 512
"""A longer tracestate is not journaled (W3C Trace Context section 3.3.1.5 asks to carry 512)."""

REASON_CHARS_MAX = 4096
"""What is kept of an error's text: an application may quote a whole body in one."""

PRINCIPAL_FIELDS = ("authorization", "x-api-key", "x-auth-token", "proxy-authorization", "cookie")
"""Header fields that tell who is asking, the most telling first."""

_ABSOLUTE_FORM = re.compile(rb"[a-z][a-z0-9+.-]*://[^/?]*(/[^?]*)?(?:\?(.*))?", re.IGNORECASE | re.DOTALL)


class JournaledRequest(
    msgspec.Struct,
    omit_defaults=True,
    gc=False,
    rename={
        "request_id": "i",
        "received_ns": "t",
        "method": "m",
        "target": "u",
        "headers": "h",
        "body": "b",
        "scheme": "s",
        "http_version": "v",
        "client": "c",
        "server": "l",
        "traceparent": "p",
        "tracestate": "q",
        "body_bytes": "n",
        "body_omitted": "o",
        "body_sha256": "d",
        "redacted": "r",
    },
):
    """A request as the journal keeps it: secrets already taken out (`stellane.recovery.redact`)."""

    request_id: str
    received_ns: int
    """Wall-clock time, nanoseconds since the epoch."""
    method: str
    target: bytes
    """The raw request target, secret query parameters replaced."""
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    """The whole body, or b"" when `body_omitted`; never a part of it."""
    scheme: str = "http"
    http_version: str = "1.1"
    client: tuple[str, int] | None = None
    server: tuple[str, int] | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    body_bytes: int = 0
    """Length of the body as received, bytes, kept or not."""
    body_omitted: bool = False
    body_sha256: bytes = b""
    """SHA-256 of the body, when the caller computed it."""
    redacted: list[tuple[str, bytes]] = []
    """(name, tag) of what was taken out; a query parameter's name begins with "?"."""

    @property
    def path_and_query(self) -> tuple[bytes, bytes]:
        """What the target means to an application, in any of its forms (RFC 9112 section 3.2)."""
        if self.target[:1] != b"/" and (match := _ABSOLUTE_FORM.fullmatch(self.target)):
            return match[1] or b"/", match[2] or b""
        path, _, query = self.target.partition(b"?")
        return path, query

    @property
    def redacted_names(self) -> tuple[str, ...]:
        """Names of what was taken out, in order."""
        return tuple(name for name, _ in self.redacted)

    @property
    def principal_tag(self) -> bytes:
        """A keyed tag of who asked, equal for equal credentials in one journal; b"" for nobody."""
        tags = dict(reversed(self.redacted))
        return next((tags[name] for name in PRINCIPAL_FIELDS if name in tags), b"")


class AttemptStarted(msgspec.Struct, omit_defaults=True, gc=False, rename={"entry_id": "e", "number": "n"}):
    """ATTEMPT: a replay is about to run. `crash` tells how the process before it ended."""

    entry_id: int
    number: int
    started_ns: int = 0
    crash: str = ""


class AttemptEnded(msgspec.Struct, omit_defaults=True, gc=False, rename={"entry_id": "e", "number": "n"}):
    """ATTEMPT_FAILED: a replay raised `error` and the request waits again."""

    entry_id: int
    number: int
    error: str = ""


class AttemptCutOff(msgspec.Struct, omit_defaults=True, gc=False, rename={"entry_id": "e", "number": "n"}):
    """ATTEMPT_CUT_OFF: the stop of its worker ended a replay; it does not count, and the request waits again."""

    entry_id: int
    number: int


class Responding(msgspec.Struct, omit_defaults=True, gc=False, rename={"entry_id": "e", "status": "s"}):
    """RESP: the first response byte is about to leave."""

    entry_id: int
    status: int = 0


class Ending(
    msgspec.Struct,
    omit_defaults=True,
    gc=False,
    rename={"entry_id": "e", "status": "s", "delivered": "d", "reason": "r"},
):
    """DONE, FAIL, DEAD and ORPHAN: how a request ended, and for DONE whether the client got it all."""

    entry_id: int
    status: int = 0
    delivered: bool = False
    reason: str = ""


class Mark(msgspec.Struct, omit_defaults=True, gc=False):
    """MARK: nothing new; its header acknowledges what came before. Up to `released` was released."""

    released: int = 0


class Snapshot(msgspec.Struct, omit_defaults=True, gc=False, rename={"entry_id": "e"}):
    """SNAP: all that is known of one entry, so that its older records may go."""

    entry_id: int
    request: JournaledRequest
    state: EntryState
    epoch: int = 0
    attempts: list[Attempt] = []
    response_started: bool = False
    status: int = 0
    reason: str = ""


class SnapshotEnd(msgspec.Struct, omit_defaults=True, gc=False):
    """SNAP_END: the `count` SNAP records from `first_seq` on stand for every record before them."""

    first_seq: int
    count: int


class Clean(msgspec.Struct, gc=False):
    """CLEAN: the writer closed the journal with nothing in hand."""


Payload: TypeAlias = (
    JournaledRequest
    | AttemptStarted
    | AttemptEnded
    | AttemptCutOff
    | Responding
    | Ending
    | Mark
    | Snapshot
    | SnapshotEnd
    | Clean
)

_DECODERS: dict[RecordType, msgspec.msgpack.Decoder[Any]] = {
    RecordType.BEGIN: msgspec.msgpack.Decoder(JournaledRequest),
    RecordType.ATTEMPT: msgspec.msgpack.Decoder(AttemptStarted),
    RecordType.ATTEMPT_FAILED: msgspec.msgpack.Decoder(AttemptEnded),
    RecordType.RESP: msgspec.msgpack.Decoder(Responding),
    RecordType.DONE: msgspec.msgpack.Decoder(Ending),
    RecordType.FAIL: msgspec.msgpack.Decoder(Ending),
    RecordType.DEAD: msgspec.msgpack.Decoder(Ending),
    RecordType.ORPHAN: msgspec.msgpack.Decoder(Ending),
    RecordType.MARK: msgspec.msgpack.Decoder(Mark),
    RecordType.SNAP: msgspec.msgpack.Decoder(Snapshot),
    RecordType.SNAP_END: msgspec.msgpack.Decoder(SnapshotEnd),
    RecordType.CLEAN: msgspec.msgpack.Decoder(Clean),
    RecordType.ATTEMPT_CUT_OFF: msgspec.msgpack.Decoder(AttemptCutOff),
}

encode_payload = msgspec.msgpack.Encoder().encode


def decode_payload(type_: RecordType, payload: bytes) -> Payload:
    """The content of a record. Raises msgspec.DecodeError when it does not fit the type."""
    content: Payload = _DECODERS[type_].decode(payload)
    return content


def reason_text(text: object) -> str:
    """What a record can hold of an application's words: text, encodable and of bounded length.

    A number would make a record that no later scan can read, a lone surrogate none at all.
    """
    return str(text)[:REASON_CHARS_MAX].encode("utf-8", "backslashreplace").decode()
