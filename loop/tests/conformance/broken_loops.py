"""Loops that are wrong on purpose: what test_runner.py shows the runner to notice."""

from __future__ import annotations

import asyncio
import os
from typing import Any


class Deaf(asyncio.SelectorEventLoop):
    """Never calls back later, so whoever sleeps waits for ever."""

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = super().call_at(when, callback, *args, context=context)
        handle.cancel()
        return handle


class Mortal(asyncio.SelectorEventLoop):
    """Dies with its process as soon as a callback is due later."""

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        os.abort()


class Hasty(asyncio.SelectorEventLoop):
    """Calls back at once, whatever the delay."""

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return super().call_at(self.time(), callback, *args, context=context)


class Spoiling(asyncio.SelectorEventLoop):
    """Good alone: only the second loop of a process is hasty."""

    _made = 0

    def __init__(self) -> None:
        super().__init__()
        Spoiling._made += 1
        self._spoilt = Spoiling._made > 1

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return super().call_at(self.time() if self._spoilt else when, callback, *args, context=context)
