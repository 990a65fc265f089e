"""Connections of every kind leave nothing behind; `python -m loop.tests.leaks` is the long version."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from loop.tests.leaks import OBJECTS_GROWTH_MAX, RSS_GROWTH_BYTES_MAX, Held

import stellane_loop

ROOT = Path(__file__).parents[2]


def test_mixed_connections_leave_nothing_behind(poller):
    """In a process of its own: what other tests left to the garbage collector is not judged."""
    command = [sys.executable, "-m", "loop.tests.leaks", "--loop", poller, "--connections", "3000", "--warm-up", "1000"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"descriptors": 1}, "descriptors: "),
        ({"open": 1}, "objects of the poller: "),
        ({"rss_bytes": RSS_GROWTH_BYTES_MAX + 1}, "memory: "),
        ({"objects": OBJECTS_GROWTH_MAX + 1}, "Python objects: "),
    ],
)
def test_what_is_left_is_named(loop: stellane_loop.Loop, more, named):
    before = Held.by(loop)
    values = {name: getattr(before, name) + grown for name, grown in more.items() if name != "objects"}
    if "objects" in more:
        values["objects"] = before.objects + before.objects.__class__({"Leaked": more["objects"]})
    left = dataclasses.replace(before, **values).left_since(before)
    assert [line.startswith(named) for line in left] == [True]
    assert before.left_since(before) == []
