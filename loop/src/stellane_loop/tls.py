"""TLS of connections: asyncio's protocol, with the usual way of a record cut short.

The usual way: the handshake is over, the application reads bytes and nothing is paused. asyncio's code then asks
OpenSSL for 256 KiB, and once more to be told by an exception that there is nothing left, and looks at every limit again
after each step.
"""

from asyncio import sslproto

_AGAIN = getattr(sslproto, "SSLAgainErrors", ())  # an interpreter without OpenSSL has none
_WRAPPED = sslproto.SSLProtocolState.WRAPPED
_FATAL = "Fatal error on SSL protocol"


class TLSProtocol(sslproto.SSLProtocol):
    """asyncio's, for which every other case is left to it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        plain = type(self._sslobj) is sslproto.ssl.SSLObject  # whose methods only pass on what they are given
        self._tls = self._sslobj._sslobj if plain else self._sslobj

    def get_buffer(self, _sizehint):
        """Room for what is received: as much as asyncio ever asks for."""
        return self._ssl_buffer_view

    def buffer_updated(self, nbytes):
        """So much was received into the buffer."""
        if self._state is not _WRAPPED or self._app_reading_paused or self._app_protocol_is_buffer:
            super().buffer_updated(nbytes)
            return
        self._incoming.write(self._ssl_buffer_view[:nbytes])
        try:
            self._do_read__copied()
            if self._write_backlog:
                self._do_write()
            elif self._outgoing.pending or self._app_writing_paused or not self._outgoing_high_water:
                self._process_outgoing()
            if self._ssl_reading_paused or self._incoming.pending >= self._incoming_high_water:
                self._control_ssl_reading()
        except Exception as exc:
            self._fatal_error(exc, _FATAL)

    def _do_read__copied(self):
        incoming, tls = self._incoming, self._tls
        waiting = incoming.pending
        if not waiting:
            super()._do_read__copied()
            return
        # What a record holds is shorter than the record. More may be in the part of it that OpenSSL has already read.
        try:
            data = tls.read(waiting)
        except _AGAIN:
            return
        ended = not data
        if not ended and (incoming.pending or tls.pending()):
            data, ended = self._read_rest(data)
        if data:
            self._app_protocol.data_received(data)
        if ended:
            self._call_eof_received()
            self._start_shutdown()

    def _read_rest(self, first):
        """(all bytes from the first on, whether the peer has ended)."""
        chunks = [first]
        try:
            while chunk := self._tls.read(self.max_size):
                chunks.append(chunk)
        except _AGAIN:
            return b"".join(chunks), False
        return b"".join(chunks), True

    def _write_appdata(self, list_of_data):
        if self._state is not _WRAPPED or self._write_backlog or len(list_of_data) != 1:
            super()._write_appdata(list_of_data)
            return
        data = list_of_data[0]
        try:
            try:
                count = self._tls.write(data)
            except _AGAIN:
                count = 0
            if count < len(data):
                self._write_backlog.append(data[count:])
                self._write_buffer_size += len(data) - count
                self._do_write()
            elif self._ssl_writing_paused or self._app_writing_paused or not self._outgoing_high_water:
                self._process_outgoing()
            else:
                self._transport.write(self._outgoing.read())
        except Exception as exc:
            self._fatal_error(exc, _FATAL)
