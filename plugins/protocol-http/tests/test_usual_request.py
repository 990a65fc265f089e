"""The compiled part of the protocol: that it is there, and that there is a way without it."""

from __future__ import annotations

import os

from stellane_protocol_http import usual_request


def test_it_is_compiled_unless_plain_python_was_asked_for() -> None:
    """A build that silently went without its compiler would pass every other test, slowly."""
    assert usual_request.is_compiled() == (os.environ.get("PROTOCOL_HTTP_NO_EXTENSIONS") != "1")
