"""The probe tells whether libuv works here, by trying it."""

from __future__ import annotations

import pytest
import uvloop

import stellane_backend_libuv as plugin
from stellane_backend_libuv import LibUVBackend


def test_usable_where_a_loop_runs() -> None:
    """It tells the version of uvloop."""
    probe = plugin.stellane_probe(None)
    assert (probe.usable, probe.facts) == (True, {"uvloop": uvloop.__version__})


def test_refusal_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """When libuv cannot open a loop the reason says so."""

    def refuse() -> uvloop.Loop:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(uvloop, "new_event_loop", refuse)
    probe = plugin.stellane_probe(None)
    assert not probe.usable
    assert "too many open files" in probe.reason
    assert probe.remedy


def test_the_loop_is_uvloops() -> None:
    """Whatever the event loop policy says."""
    loop = LibUVBackend().new_event_loop()
    assert isinstance(loop, uvloop.Loop)
    loop.close()
