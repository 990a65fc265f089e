"""The probe tells whether epoll works here, by trying it."""

from __future__ import annotations

import asyncio
import select
import selectors

import pytest

import stellane_backend_epoll as plugin
from stellane_backend_epoll import EpollBackend


def test_usable_where_epoll_opens() -> None:
    """It really opens a descriptor, and gives it back."""
    opened = []
    original = select.epoll

    class Watched:
        def __new__(cls) -> select.epoll:
            opened.append(original())
            return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "epoll", Watched)
        assert plugin.stellane_probe(None).usable
    assert [epoll.closed for epoll in opened] == [True]


def test_refusal_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no descriptors left the reason is the system's own, and there is something to do about it."""

    def refuse() -> select.epoll:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(select, "epoll", refuse)
    probe = plugin.stellane_probe(None)
    assert (probe.usable, probe.reason) == (False, "epoll_create1: Too many open files")
    assert probe.remedy


def test_missing_epoll_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without epoll is told which backend to use."""
    monkeypatch.delattr(select, "epoll")
    probe = plugin.stellane_probe(None)
    assert (probe.usable, probe.reason) == (False, "this system has no epoll")
    assert "asyncio" in probe.remedy


def test_the_loop_is_over_epoll() -> None:
    """Whatever the platform's default selector is."""
    loop = EpollBackend().new_event_loop()
    assert isinstance(loop, asyncio.SelectorEventLoop)
    assert isinstance(loop._selector, selectors.EpollSelector)
    loop.close()
