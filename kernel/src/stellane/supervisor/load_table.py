"""How many connections each worker has open, in memory that all of them see.

One line of 64 bytes, a cache line, for each slot. A slot's line has one writer: the process in
the slot, and between two processes the supervisor, which has reaped the one and not yet
started the other. So nothing is read, changed and written back by two at once, and no lock is
needed that a killed worker could keep. A number is eight aligned bytes, stored by one move
instruction; a count that fits into four could not be seen torn even without that.

What a reader sees may be a moment old. It decides where one connection goes and is read
again for the next, so an old number makes an imbalance of one connection for each worker
that decided at the same moment, and the decisions after it take it back. Nothing is added up
over time: a worker publishes how many it has, not how many came and went, so that an error has
nowhere to stay.
"""

from __future__ import annotations

import mmap

LINE_BYTES = 64
_WORDS = LINE_BYTES // 8
_ACCEPTING, _OPEN = 0, 1


class LoadTable:
    """The table in the memory file `fd`, for `slots` slots. A new file is all zeros: nobody accepts.

    `fd` is not needed any more afterwards. Raises OSError and ValueError when it cannot be mapped.
    """

    def __init__(self, fd: int, slots: int) -> None:
        self._map = mmap.mmap(fd, table_bytes(slots))
        self._words = memoryview(self._map).cast("q")
        self._turn_at = slots * _WORDS

    def is_accepting(self, slot: int) -> bool:
        """Whether the worker in the slot takes connections: not one that starts, drains or is dead."""
        return self._words[slot * _WORDS + _ACCEPTING] != 0

    def set_accepting(self, slot: int, accepting: bool) -> None:
        """For the slot's own worker."""
        self._words[slot * _WORDS + _ACCEPTING] = accepting

    def open_in(self, slot: int) -> int:
        """The connections open in the slot."""
        return self._words[slot * _WORDS + _OPEN]

    def set_open(self, slot: int, connections: int) -> None:
        """For the slot's own worker."""
        self._words[slot * _WORDS + _OPEN] = connections

    def clear(self, slot: int) -> None:
        """For the supervisor, once the slot's process has been reaped: its connections died with it."""
        self.set_accepting(slot, False)
        self.set_open(slot, 0)

    @property
    def turn(self) -> int:
        """The slot that had the last connection by turns.

        The one number that all workers write. Two that take the same turn at once give one slot two
        connections in a row, and that is all.
        """
        return self._words[self._turn_at]

    @turn.setter
    def turn(self, slot: int) -> None:
        self._words[self._turn_at] = slot

    def close(self) -> None:
        """Unmap it."""
        self._words.release()
        self._map.close()


def table_bytes(slots: int) -> int:
    """The size of the memory file: a line for each slot and one for the turn."""
    return (slots + 1) * LINE_BYTES
