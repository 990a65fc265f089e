"""The probe of io_uring says what a loop would meet. What it says of each obstacle is under test in C."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

import stellane_loop


def test_it_agrees_with_a_loop() -> None:
    probe = stellane_loop.probe_io_uring()
    if probe.usable:
        stellane_loop.new_io_uring_event_loop().close()
        assert (probe.reason, probe.errno) == ("usable", 0)
    else:
        with pytest.raises(OSError, match="io_uring") as caught:
            stellane_loop.new_io_uring_event_loop()
        assert (probe.errno, probe.message != "") == (caught.value.errno, True)


def test_an_obstacle_is_named_with_a_remedy() -> None:
    """No descriptors left: an obstacle that every machine has."""
    code = (
        "import resource, stellane_loop, os\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) - 1,) * 2)\n"
        "probe = stellane_loop.probe_io_uring()\n"
        "print(probe.usable, probe.reason, probe.errno)\n"
        "print(probe.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    words, message = done.stdout.splitlines()[0], done.stdout.splitlines()[1]
    if stellane_loop.probe_io_uring().usable:
        assert words == "False descriptors 24"
    assert "io_uring" in message
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64  # the limit was the child's alone
