"""TLS of connections: asyncio's protocol and transport, with the usual way of a record cut short.

asyncio's code asks OpenSSL for 256 KiB of each record, and once more to be told by an exception that there is nothing
left, and looks at every limit again after each step. What the native bases define comes before it: `native/tls.pxi`.
"""

from asyncio import sslproto, streams

from stellane_loop import _native

_CONTEXTS = (sslproto.ssl.SSLContext,) if sslproto.ssl else ()


class SSLTransport(_native.SSLTransportBase, sslproto._SSLProtocolTransport):
    """What the application writes to."""


class SSLProtocol(_native.SSLProtocolBase, sslproto.SSLProtocol):
    """What the socket's transport talks to."""

    def __init__(self, *args, **kwargs):
        self.max_size = 0  # asyncio's buffer of 256 KiB a connection is made if ever its transport asks for it
        super().__init__(*args, **kwargs)
        del self.max_size
        self._know(_connection_of(self._sslobj), self._incoming, self._outgoing)

    def _get_app_transport(self):
        if not self._app_transport_created:
            self._app_transport = SSLTransport(self._loop, self)
            self._app_transport_created = True
        return super()._get_app_transport()


def _connection_of(sslobj):
    """What reads and writes records; None for what somebody's context made in the place of an SSLObject."""
    if type(sslobj) is sslproto.ssl.SSLObject:
        return sslobj._sslobj  # to which the methods of the other only pass on what they are given
    return sslobj if isinstance(sslobj, sslproto.ssl.SSLObject) else None


def suits(transport, sslcontext):
    """Whether start_tls below is for them; what it is not for, asyncio's refuses or serves."""
    return isinstance(transport, _native.StreamTransport) and isinstance(sslcontext, _CONTEXTS)


async def start_tls(loop, transport, protocol, sslcontext, *, server_side, **options):
    """From now on `protocol` speaks TLS over the socket's transport. As asyncio's, with what gh-142352 added to it."""
    waiter = loop.create_future()
    ssl_protocol = SSLProtocol(
        loop, protocol, sslcontext, waiter, server_side=server_side, call_connection_made=False, **options
    )
    transport.pause_reading()  # what came before connection_made was called would find no handshake to belong to
    transport.set_protocol(ssl_protocol)
    if server_side and isinstance(protocol, streams.StreamReaderProtocol):
        _take_what_was_read_ahead(ssl_protocol, protocol._stream_reader)
    steps = [loop.call_soon(ssl_protocol.connection_made, transport), loop.call_soon(transport.resume_reading)]
    try:
        await waiter
    except BaseException:
        transport.close()
        for step in steps:
            step.cancel()
        raise
    return ssl_protocol._app_transport


def _take_what_was_read_ahead(ssl_protocol, reader):
    # A client may send its first message with, or right behind, the last of the plain text.
    if reader is not None and reader._buffer:
        ssl_protocol._incoming.write(reader._buffer)
        reader._buffer.clear()
