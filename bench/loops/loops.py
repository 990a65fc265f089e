"""The event loops of the tables: how each is made, and what shows that it is the one."""

from __future__ import annotations

import asyncio
import importlib
import selectors
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

STELLANE = ("stellane-epoll", "stellane-io_uring")
UVLOOP = "uvloop"


@dataclass(frozen=True, slots=True)
class Loop:
    """One event loop. `type_name` and `file_part` are of the loop's class, `polls` as in `bench.rows.Row`."""

    name: str
    title: str
    new: Callable[[], asyncio.AbstractEventLoop]
    type_name: str
    file_part: str
    polls: str
    polls_not: str = ""
    distribution: str = ""
    maps: str = ""
    """A part of the path of the shared library that must be loaded; "" when the loop is pure Python."""


def _stellane(poller: str) -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = importlib.import_module("stellane_loop").new_event_loop(poller=poller)
    return loop


def _of_module(name: str) -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = importlib.import_module(name).new_event_loop()
    return loop


def _peer(name: str, type_name: str, polls: str) -> Loop:
    """A loop from PyPI whose distribution and module are called `name`, with a compiled part."""
    path = f"/{name}/"
    return Loop(name, name, lambda: _of_module(name), type_name, path, polls, distribution=name, maps=path)


def _asyncio() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.EpollSelector())


def _stellane_loop(poller: str) -> Loop:
    return Loop(
        f"stellane-{poller}",
        f"stellane-loop, {poller}",
        lambda: _stellane(poller),
        type_name=r"stellane_loop\..*",
        file_part="/stellane_loop/",
        polls=poller,
        polls_not="io_uring" if poller == "epoll" else "",
        distribution="stellane-loop",
        maps="/stellane_loop/",
    )


LOOPS = (
    _stellane_loop("epoll"),
    _stellane_loop("io_uring"),
    # libuv opens a ring beside its epoll, for files.
    _peer(UVLOOP, r"uvloop\.Loop", "epoll"),
    Loop(
        "asyncio",
        "asyncio, epoll",
        _asyncio,
        type_name=r"asyncio\.unix_events\._UnixSelectorEventLoop",
        file_part="/asyncio/unix_events.py",
        polls="epoll",
        polls_not="io_uring",
    ),
    _peer("rloop", r"rloop\.loop\.RLoop", "epoll"),
    # Its poller belongs to a helper thread and depends on the kernel: nothing to insist on.
    _peer("rsloop", r"rsloop\..*", ""),
)


SPIN_US_MAX, BATCH_WAIT_US_MAX = 50, 50
"""What the modes below allow the loop; 50 is the default of Stellane's configuration too."""


def _in_mode(poller: str, mode: str, title: str, enter: Callable[[Any], object]) -> Loop:
    """Stellane's loop after `enter(loop)`."""
    plain = _stellane_loop(poller)

    def new() -> asyncio.AbstractEventLoop:
        loop = plain.new()
        enter(loop)
        return loop

    return replace(plain, name=f"{plain.name}+{mode}", title=f"{poller}, {title}", new=new)


def _order_by_priority(loop: Any) -> None:
    loop.set_ready_order(importlib.import_module("stellane_loop").PriorityOrder())


SPINNING = tuple(
    _in_mode(poller, "spin", "adaptive polling", lambda loop: loop.set_adaptive_polling(SPIN_US_MAX))
    for poller in ("epoll", "io_uring")
)
BATCHING = _in_mode("io_uring", "batch", "batching", lambda loop: loop.set_adaptive_polling(0, BATCH_WAIT_US_MAX))
OBSERVED = (
    _in_mode("epoll", "slow", "slow callbacks", lambda loop: loop.report_slow_callbacks(1.0, print)),
    _in_mode("epoll", "measured", "measured", lambda loop: loop.measure_turns(True)),
    _in_mode("epoll", "priority", "by priority", _order_by_priority),
)
"""What asking for more than first in, first out costs; each is one test while nobody asks."""

MODES = (*SPINNING, BATCHING, *OBSERVED)


def loop_named(name: str) -> Loop:
    """The loop of that name, or the mode. Raises LookupError."""
    for loop in (*LOOPS, *MODES):
        if loop.name == name:
            return loop
    raise LookupError(f"no loop is called {name!r}; there are {', '.join(loop.name for loop in (*LOOPS, *MODES))}")


def identity(loop: asyncio.AbstractEventLoop) -> str:
    """What `loop` is, from the object itself, as the lines that its row looks for."""
    kind = type(loop)
    file = getattr(sys.modules[kind.__module__], "__file__", None)
    poller = getattr(loop, "poller_name", None)
    return f"loop {kind.__module__}.{kind.__qualname__}\nmodule {file}\npoller {poller}\n"
