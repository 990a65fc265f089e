"""How much one connection holds and how long it waits, where that is not a setting."""

from __future__ import annotations

BODY_BUFFER_BYTES = 65_536
"""Request body bytes waiting for the application before reading stops."""
PIPELINE_BUFFER_BYTES = 65_536
"""Bytes of later requests waiting behind the one in hand before reading stops."""
SKIP_BYTES_MAX = 65_536
"""Unread request body thrown away to keep a connection; more of it costs the connection."""
GATHER_BYTES_MAX = 65_536
"""Responses to pipelined requests gathered into one write, up to about this size."""
LINGER_S = 2.0
"""How long a closing connection waits for the client to take the last response, seconds."""
JOINED_BODY_BYTES_MAX = 65_536
"""Up to here head and body of a response go out as one piece; copying a longer body costs more than a second write."""
