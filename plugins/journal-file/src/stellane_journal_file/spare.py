"""The spare segment: zero-filled in the background, so that a full one is replaced without waiting."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from stellane_journal_file.segment import make_zeroed

RETRY_S = 1.0
"""A spare that could not be made (no space) is tried again after this long, seconds."""


class SpareMaker:
    """Makes one spare segment at a time in a thread, and syncs the segment it replaced."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.error: OSError | None = None
        """Why there is no spare."""
        self.sync_error: OSError | None = None
        """A replaced segment could not be synced; what the disk holds of it is unknown."""
        self._size = size
        self._descriptor = -1
        self._thread: threading.Thread | None = None
        self._tried_s = 0.0

    @property
    def ready(self) -> bool:
        """Whether a spare can be taken at once."""
        return self._descriptor >= 0

    def start(self, replaced: int = -1) -> None:
        """Make a spare, and sync and close the descriptor `replaced`, in the background."""
        self.wait()
        self._tried_s = time.monotonic()
        thread = threading.Thread(target=self._work, args=(replaced,), name="journal-spare", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # The system makes no more threads (pids cgroup, RLIMIT_NPROC): slow, but nothing is wrong with the disk.
            self._work(replaced)
        else:
            self._thread = thread

    def wait(self) -> None:
        """Wait until the background work has ended."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def retry(self) -> bool:
        """Wait for a spare, trying again if the last time is RETRY_S ago; whether there is one."""
        self.wait()
        if not self.ready and time.monotonic() - self._tried_s >= RETRY_S:
            self.start()
            self.wait()
        return self.ready

    def space_freed(self) -> None:
        """The next `retry` need not wait for RETRY_S: a spare may fit now."""
        self._tried_s = -RETRY_S

    def take(self) -> int:
        """The descriptor of the spare, whose file is still at `path`."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Drop the spare."""
        self.wait()
        if self._descriptor >= 0:
            os.close(self.take())
            self.path.unlink(missing_ok=True)

    def forked(self) -> None:
        """In a forked child: close the descriptor; the file and the thread are the parent's."""
        if self._descriptor >= 0:
            os.close(self.take())

    def _work(self, replaced: int) -> None:
        if replaced >= 0:
            try:
                os.fdatasync(replaced)
            except OSError as error:
                self.sync_error = error
            finally:
                os.close(replaced)
        if self.ready:
            return
        try:
            self._descriptor = make_zeroed(self.path, self._size)
            self.error = None
        except OSError as error:
            self.error = error
