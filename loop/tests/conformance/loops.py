"""Which event loop is judged: a name, or `module:factory`, with keyword arguments as `module:factory?poller=epoll`."""

from __future__ import annotations

import asyncio
import functools
import importlib
from asyncio import unix_events
from collections.abc import Callable
from urllib.parse import parse_qsl

LOOPS = {
    "asyncio": "asyncio:SelectorEventLoop",
    "uvloop": "uvloop:new_event_loop",
    "epoll": "stellane_loop:new_event_loop?poller=epoll",
    "io_uring": "stellane_loop:new_event_loop?poller=io_uring",
}
"""Short names: two controls, and the two pollers of ours."""

Factory = Callable[[], asyncio.AbstractEventLoop]


def loop_factory(loop: str) -> Factory:
    """The function that makes the loop. ImportError, AttributeError or ValueError say what is wrong with `loop`."""
    target, _, arguments = LOOPS.get(loop, loop).partition("?")
    module, colon, name = target.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{loop!r} is neither one of {', '.join(LOOPS)} nor of the form module:factory")
    factory = getattr(importlib.import_module(module), name)
    return functools.partial(factory, **dict(parse_qsl(arguments))) if arguments else factory


def install(loop: str) -> Factory:
    """Make `loop` what asyncio.new_event_loop(), asyncio.Runner and asyncio.run() use.

    By the default policy, which all of them ask; asyncio.new_event_loop itself stays, so that a test
    that brings a policy of its own (test_runners) still gets it.
    """
    factory = loop_factory(loop)
    policy = getattr(unix_events, "_DefaultEventLoopPolicy", None)  # from Python 3.14 on; the public name warns there
    if policy is None:
        policy = asyncio.DefaultEventLoopPolicy
    policy._loop_factory = staticmethod(factory)
    return factory
