"""The interpreter's event-loop test cases, bound to what asyncio.new_event_loop() makes: see `loops.install()`.

CPython writes these tests as mixins with a method that makes the loop, which a selector loop and, on
Windows, a proactor loop fill in. So does this module, for the loop under test. The names of the
classes are the groups of the report.
"""

from __future__ import annotations

import asyncio
import unittest

from test.test_asyncio import (
    test_buffered_proto,
    test_events,
    test_sendfile,
    test_server,
    test_sock_lowlevel,
    test_ssl,
    test_sslproto,
    test_subprocess,
    utils,
)


class _Create:
    def create_event_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()


class _New:
    def new_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop()


class Events(_Create, test_events.EventLoopTestsMixin, test_events.SubprocessTestsMixin, utils.TestCase):
    """test_events"""


class SockLowLevel(_Create, test_sock_lowlevel.BaseSockTestsMixin, utils.TestCase):
    """test_sock_lowlevel"""


class Sendfile(_Create, test_sendfile.SendfileTestsBase, utils.TestCase):
    """test_sendfile"""


class StartServer(_New, test_server.BaseStartServer, unittest.TestCase):
    """test_server, the part that takes a loop"""


class BufferedProtocol(_New, test_buffered_proto.BaseTestBufferedProtocol, unittest.TestCase):
    """test_buffered_proto"""


class Subprocess(test_subprocess.SubprocessMixin, utils.TestCase):
    """test_subprocess; whoever watches the child is the loop's or the policy's affair"""

    def setUp(self) -> None:
        super().setUp()
        self.loop = asyncio.new_event_loop()
        self.set_event_loop(self.loop)


class StartTLS(_New, test_sslproto.BaseStartTLS, unittest.TestCase):
    """test_sslproto, the part that takes a loop"""


class SSL(_New, test_ssl.TestSSL):
    """test_ssl"""


CASES = [Events, SockLowLevel, Sendfile, StartServer, BufferedProtocol, Subprocess, StartTLS, SSL]

if hasattr(test_server, "TestServer2"):  # Python 3.12 and later

    class Server(test_server.TestServer2):
        """test_server, the part that takes the loop from asyncio.Runner"""

    CASES.append(Server)
