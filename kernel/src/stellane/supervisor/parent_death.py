"""A worker does not outlive its supervisor, even when the supervisor gets SIGKILL."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(supervisor_pid: int) -> None:
    """Have the kernel send this process SIGKILL when its parent dies (prctl(2) PR_SET_PDEATHSIG).

    To be called by the worker itself, first thing: the setting is lost over a fork. "Parent"
    means the thread that started this process, so the supervisor starts workers from its main
    thread only. Raises OSError when the kernel refuses. Does not return when the parent has
    died already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    # The parent may have died before prctl, and then no signal comes; but this process has
    # been given to another parent by now.
    if os.getppid() != supervisor_pid:
        os.kill(os.getpid(), signal.SIGKILL)
