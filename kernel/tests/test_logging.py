"""Logs: one format for everything a process says, with the ids that are bound."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from stellane.logging import configure, get_logger


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The root logger and structlog belong to the whole process: put them back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_json_line_has_event_level_logger_time_and_bound_ids() -> None:
    out = io.StringIO()
    configure("info", "json", stream=out)
    structlog.contextvars.bind_contextvars(request_id="r1")
    get_logger("shop", trace_id="t1").bind(order=7).info("order %s taken", "A", total=3)
    (event,) = events(out)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "order A taken",
        "level": "info",
        "logger": "shop",
        "request_id": "r1",
        "trace_id": "t1",
        "order": 7,
        "total": 3,
    }


def test_stdlib_structlog_and_warnings_come_in_the_same_format() -> None:
    out = io.StringIO()
    configure("info", "json", stream=out)
    structlog.contextvars.bind_contextvars(request_id="r1")
    logging.getLogger("library").warning("said %s", "so", extra={"peer": "x"})
    structlog.get_logger("application").info("hello")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", UserWarning, stacklevel=1)
    library, application, warning = events(out)
    assert (library["event"], library["logger"], library["peer"]) == ("said so", "library", "x")
    assert library["request_id"] == application["request_id"] == "r1"
    assert warning["logger"] == "py.warnings"


def test_level_is_held_for_all_of_them() -> None:
    out = io.StringIO()
    configure("warning", "json", stream=out)
    get_logger("ours").info("no")
    logging.getLogger("theirs").info("no")
    get_logger("ours").warning("yes")
    assert [event["event"] for event in events(out)] == ["yes"]


def test_configuring_again_replaces_our_handler_and_no_other() -> None:
    first, second, foreign = io.StringIO(), io.StringIO(), logging.NullHandler()
    logging.getLogger().addHandler(foreign)
    logger = get_logger("ours")
    configure("info", "json", stream=first)
    logger.info("one")
    configure("info", "json", stream=second)
    logger.info("two")
    assert [event["event"] for event in events(first)] == ["one"]
    assert [event["event"] for event in events(second)] == ["two"]
    assert foreign in logging.getLogger().handlers


@pytest.mark.parametrize(
    ("format_", "stream", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("console", io.StringIO, False),
        ("json", Terminal, True),
    ],
)
def test_format(format_: str, stream: type[io.StringIO], is_json: bool) -> None:
    out = stream()
    configure("info", format_, stream=out)
    get_logger("ours").info("hello", answer=42)
    line = out.getvalue()
    assert line.startswith("{") is is_json
    assert "hello" in line
    assert ("\x1b[" in line) is (isinstance(out, Terminal) and not is_json)


@pytest.mark.parametrize("format_", ["console", "json"])
def test_traceback_is_kept_and_local_variables_are_not(format_: str) -> None:
    """The locals of a handler's frames may hold a request's secrets."""
    out = io.StringIO()
    configure("info", format_, stream=out)

    def handler() -> None:
        password = "".join(["hunter", "2"])
        raise ValueError(f"a secret of {len(password)} letters")

    try:
        handler()
    except ValueError:
        get_logger("ours").exception("failed")
    text = out.getvalue()
    assert "ValueError: a secret of 7 letters" in text
    assert "Traceback" in text
    assert "hunter2" not in text


def test_what_json_cannot_hold_does_not_stop_the_log() -> None:
    out = io.StringIO()
    configure("info", "json", stream=out)
    get_logger("ours").info("odd", path=b"\xff", name="\udcff", thing=object)
    (event,) = events(out)
    assert event["event"] == "odd"


def test_standard_error_is_where_logs_go() -> None:
    code = "from stellane.logging import *; configure('info', 'auto'); get_logger('a').info('hello')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == ""
    assert json.loads(done.stderr)["event"] == "hello"
