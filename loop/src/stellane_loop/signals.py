"""The signals of a loop that need not be alone: nested in another's callback, or beside code with a wake-up descriptor.

A process has one wake-up descriptor, to which the interpreter writes the numbers of signals. A loop has it while it
runs in the main thread, and what is for others it hands on. While somebody else has it, the handler of the signal
tells the loop.
"""

import contextlib
import os
import signal
import threading
import weakref
from asyncio import unix_events

_holders: "weakref.WeakSet[SignalHandling]" = weakref.WeakSet()


class _Ear:
    """What the interpreter calls, in the main thread, for a signal that has a handler in the loop."""

    def __init__(self, loop: "SignalHandling") -> None:
        self._loop = weakref.ref(loop)  # the table of signals would keep it alive

    def hears(self, number: int) -> bool:
        """Whether the loop still has a handler for it."""
        loop = self._loop()
        return loop is not None and not loop.is_closed() and number in loop._signal_handlers

    def __call__(self, number: int, _frame) -> None:
        if self.hears(number):
            self._loop()._heard(number)


def _belongs_to_a_loop(handler, number: int) -> bool:
    return handler.hears(number) if isinstance(handler, _Ear) else handler is unix_events._sighandler_noop


def _install(number: int, handler) -> None:
    signal.signal(number, handler)
    signal.siginterrupt(number, False)  # as asyncio: system calls of other code are restarted


class SignalHandling(unix_events._UnixSelectorEventLoop):
    """The part of `Loop` that handles signals."""

    def _prepare_signals(self) -> None:
        self._signal_handlers = {}
        self._foreign_wakeup_fd = None  # what was there before us; None: we do not have it
        self._ear = _Ear(self)
        self._heard_before = {}  # signal -> the handler of another loop that ours replaced

    # --- the wake-up descriptor ---

    def _hold_wakeup_fd(self) -> None:
        """Have the numbers of signals written to our pipe; what was there before is remembered."""
        if self._foreign_wakeup_fd is None and threading.current_thread() is threading.main_thread():
            self._foreign_wakeup_fd = signal.set_wakeup_fd(self._csock.fileno(), warn_on_full_buffer=False)
            _holders.add(self)

    def _release_wakeup_fd(self) -> None:
        """Put back what was there before us, unless the loop runs, or it was nothing and signals have handlers here."""
        foreign = self._foreign_wakeup_fd
        if foreign is None or self.is_running() or (foreign == -1 and self._signal_handlers):
            return
        if threading.current_thread() is not threading.main_thread():
            return
        try:
            found = signal.set_wakeup_fd(foreign)
        except OSError:  # closed by its owner
            found = signal.set_wakeup_fd(-1)
        if found not in (-1, self._csock.fileno()):
            signal.set_wakeup_fd(found)  # somebody else took it from us
        self._read_from_self()  # what nobody in this run has read is handed on
        for holder in _holders:  # who would put back ours puts back what we do
            if holder._foreign_wakeup_fd == self._csock.fileno():
                holder._foreign_wakeup_fd = foreign
        self._forget_wakeup_fd()

    def _forget_wakeup_fd(self) -> None:
        self._foreign_wakeup_fd = None
        _holders.discard(self)

    def _settle_wakeup_fd(self) -> None:
        """After the base class, which takes it with any handler and gives nobody the last one's."""
        if self._foreign_wakeup_fd is not None and threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._csock.fileno(), warn_on_full_buffer=False)
            self._release_wakeup_fd()

    def _drop_wakeup_fd_after_fork(self) -> None:
        if self._foreign_wakeup_fd is None:
            return
        # The pipe is shared: the number of a signal of the child would run the parent's handler.
        found = signal.set_wakeup_fd(-1)
        if found not in (-1, self._csock.fileno()):
            signal.set_wakeup_fd(found)
        self._forget_wakeup_fd()

    # --- handlers ---

    def _heard(self, number: int) -> None:
        """A signal arrived; its number is in our pipe only if we have the wake-up descriptor."""
        ours = self._csock.fileno()
        found = signal.set_wakeup_fd(
            ours, warn_on_full_buffer=False
        )  # not -1 first: another signal may come in between
        if found == ours:
            return
        if found == -1:  # asyncio leaves nobody there when the last of its handlers goes
            self._foreign_wakeup_fd = -1 if self._foreign_wakeup_fd is None else self._foreign_wakeup_fd
            _holders.add(self)
        else:
            with contextlib.suppress(OSError):
                signal.set_wakeup_fd(found)
        self.call_soon_threadsafe(self._handle_signal, number)

    def _handle_signal(self, sig: int) -> None:
        foreign = self._foreign_wakeup_fd
        if sig in self._signal_handlers:
            super()._handle_signal(sig)
        # Loops of ours hear for themselves.
        elif foreign not in (None, -1) and all(holder._csock.fileno() != foreign for holder in _holders):
            with contextlib.suppress(OSError):
                os.write(foreign, bytes([sig]))

    def add_signal_handler(self, sig, callback, *args):
        """Call callback(*args) in the loop when `sig` arrives. RuntimeError outside the main thread."""
        self._check_closed()
        before = signal.getsignal(sig) if isinstance(sig, int) and sig in signal.valid_signals() else None
        self._hold_wakeup_fd()
        try:
            super().add_signal_handler(sig, callback, *args)
            _install(sig, self._ear)
        finally:
            self._settle_wakeup_fd()
        if before is not self._ear:
            self._heard_before[sig] = before

    def remove_signal_handler(self, sig: int) -> bool:
        """Whether there was a handler for `sig`. One of another loop that ours replaced is there again."""
        if sig not in self._signal_handlers:
            return super().remove_signal_handler(sig)
        handler = signal.getsignal(sig)
        if handler is self._ear:
            handler = self._heard_before.get(sig)
        self._hold_wakeup_fd()
        try:
            super().remove_signal_handler(sig)
        finally:
            self._settle_wakeup_fd()
        self._heard_before.pop(sig, None)
        if _belongs_to_a_loop(handler, sig):
            _install(sig, handler)
        return True
