"""The probe tells whether io_uring works here, by setting a ring up."""

from __future__ import annotations

import pytest

import stellane_backend_iouring as plugin
import stellane_loop
from stellane.config import PerformanceConfig
from stellane_backend_iouring import IoUringBackend
from stellane_loop import IoUringProbe


def test_it_says_what_the_ring_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Usable with the flags that were granted, or not, with the reason and another backend."""
    monkeypatch.setattr(stellane_loop, "probe_io_uring", lambda: IoUringProbe(True, "usable", "", 0, 0x3000))
    probe = plugin.stellane_probe(None)
    assert (probe.usable, probe.facts["setup_flags"]) == (True, "0x3000")
    refused = IoUringProbe(False, "seccomp", "io_uring_setup: EPERM, by seccomp", 1, 0)
    monkeypatch.setattr(stellane_loop, "probe_io_uring", lambda: refused)
    probe = plugin.stellane_probe(None)
    assert (probe.usable, probe.reason) == (False, "io_uring_setup: EPERM, by seccomp")
    assert "epoll" in probe.remedy


def test_the_loop_is_over_io_uring() -> None:
    """The native loop, and its poller is what the backend's name says."""
    probe = stellane_loop.probe_io_uring()
    if not probe.usable:
        pytest.skip(f"not run: {probe.message}")
    loop = IoUringBackend().new_event_loop()
    assert isinstance(loop, stellane_loop.Loop)
    assert loop.poller_name == "io_uring"
    loop.close()


@pytest.mark.parametrize(
    ("performance", "limits"),
    [
        (PerformanceConfig(), (0, 0)),
        (PerformanceConfig(adaptive_polling=True, poll_spin_us_max=70), (70, 0)),
        (PerformanceConfig(batch_wait_us_max=30), (0, 30)),
    ],
)
def test_performance_is_handed_to_the_loop(performance: PerformanceConfig, limits: tuple[int, int]) -> None:
    """[performance] decides; off is the default."""
    probe = stellane_loop.probe_io_uring()
    if not probe.usable:
        pytest.skip(f"not run: {probe.message}")
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stellane_loop.Loop, "set_adaptive_polling", lambda _, *given: seen.append(given))
        IoUringBackend(performance).new_event_loop().close()
    assert seen == [limits]
