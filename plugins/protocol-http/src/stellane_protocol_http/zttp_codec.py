"""The fast codec: zttp's objects as they are."""

from __future__ import annotations

import zttp

from stellane_protocol_http.codec import Codec, CodecConnection


def _connect() -> CodecConnection:
    return zttp.Connection(zttp.SERVER)


ZTTP = Codec(
    name="zttp",
    connect=_connect,
    request_type=zttp.Request,
    data_type=zttp.Data,
    end_type=zttp.EndOfMessage,
    need_data=zttp.NEED_DATA,
    remote_error=zttp.RemoteProtocolError,
    too_large=lambda error: "size limit" in str(error),
    line_bytes_max=16_383,
    fields_max=100,
)
