"""Whether io_uring can be had here, and if not, what stands in the way."""

from __future__ import annotations

from dataclasses import dataclass

from stellane_loop import _native


@dataclass(frozen=True)
class IoUringProbe:
    """What setting a ring up said.

    `reason` is a word: "usable", "sysctl", "seccomp", "denied", "not_in_kernel", "kernel_too_old",
    "memlock", "no_memory", "descriptors" or "other". `message` is for a person: what happened, why, what to do.
    """

    usable: bool
    reason: str
    message: str
    errno: int
    """Of what failed; 0 when usable."""
    setup_flags: int
    """The io_uring_setup(2) flags that the kernel granted; 0 when not usable."""


def probe_io_uring() -> IoUringProbe:
    """Set a ring up as a loop would, and take it down again. Takes about a millisecond."""
    reason, message, errno, setup_flags = _native._probe_io_uring()
    return IoUringProbe(reason == "usable", reason, message, errno, setup_flags)
