"""The probe tells whether epoll works here, by trying it."""

from __future__ import annotations

import asyncio

import pytest

import stellane_backend_epoll as plugin
import stellane_loop
from stellane.config import PerformanceConfig
from stellane_backend_epoll import EpollBackend


def test_usable_where_a_loop_runs() -> None:
    """It runs a loop, closes it, and tells the version."""
    made = []
    original = stellane_loop.new_epoll_event_loop

    def watched() -> asyncio.AbstractEventLoop:
        made.append(original())
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stellane_loop, "new_epoll_event_loop", watched)
        probe = plugin.stellane_probe(None)
    assert (probe.usable, probe.facts) == (True, {"stellane-loop": stellane_loop.__version__})
    assert [loop.is_closed() for loop in made] == [True]


def test_refusal_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no descriptors left the reason is the system's own, and there is something to do about it."""

    def refuse() -> asyncio.AbstractEventLoop:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(stellane_loop, "new_epoll_event_loop", refuse)
    probe = plugin.stellane_probe(None)
    assert (probe.usable, probe.reason) == (False, "epoll cannot be set up: Too many open files")
    assert probe.remedy


def test_the_loop_is_over_epoll() -> None:
    """The native loop, and its poller is what the backend's name says."""
    loop = EpollBackend().new_event_loop()
    assert isinstance(loop, stellane_loop.Loop)
    assert loop.poller_name == "epoll"
    loop.close()


def test_adaptive_polling_is_handed_to_the_loop() -> None:
    """[performance] decides; off is the default."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stellane_loop.Loop, "set_adaptive_polling", lambda _, *limits: seen.append(limits))
        EpollBackend().new_event_loop().close()
        assert seen == []
        EpollBackend(PerformanceConfig(adaptive_polling=True, poll_spin_us_max=70)).new_event_loop().close()
        assert seen == [(70,)]
