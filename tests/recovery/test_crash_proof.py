"""The crash proof of the README, as a test. `examples/crash_demo.py` shows the same to a person."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from stellane.testing.crash_campaign import CrashCampaign

ORDERS = Path(__file__).parents[2] / "examples" / "orders.py"
BACKENDS = [os.environ["STELLANE_TEST_BACKEND"]] if "STELLANE_TEST_BACKEND" in os.environ else ["libuv"]
JOURNALS = [os.environ["STELLANE_TEST_JOURNAL"]] if "STELLANE_TEST_JOURNAL" in os.environ else ["file", "rocksdb"]
KILL_SECONDS = float(os.environ.get("STELLANE_TEST_KILL_SECONDS", "20"))


@pytest.fixture(params=[(backend, journal) for backend in BACKENDS for journal in JOURNALS], ids="-".join)
def campaign(request: pytest.FixtureRequest, tmp_path: Path) -> CrashCampaign:
    backend, journal = request.param
    return CrashCampaign(tmp_path, target=f"{ORDERS}:server", backend=backend, journal=journal)


@pytest.mark.slow
def test_no_request_is_lost_when_workers_are_killed(campaign: CrashCampaign) -> None:
    """200 in flight on 2 workers, a random one killed every 200 ms: every journaled request ends."""
    report = asyncio.run(campaign.kill_workers(seconds=KILL_SECONDS))
    report.check()
    assert report.kills >= KILL_SECONDS * 2
    assert report.refused == 0
    assert report.cut_off > 0, "no kill ever met a request: this proved nothing"
    assert report.replayed > 0, "no request was ever replayed: this proved nothing"
    assert report.answered_between_kills > 0, "nothing was answered while workers were killed"


@pytest.mark.slow
def test_no_request_is_lost_when_everything_is_killed_at_once(campaign: CrashCampaign) -> None:
    """Supervisor and workers killed together with 200 in flight; the next start finishes them."""
    report = asyncio.run(campaign.kill_all_and_restart())
    report.check()
    assert report.replayed > 0, "no request was ever replayed: this proved nothing"
