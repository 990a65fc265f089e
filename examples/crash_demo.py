"""Watch it: requests in flight, workers killed with SIGKILL, nothing lost.

python examples/crash_demo.py [--seconds 20] [--journal file|rocksdb] [--backend libuv]
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from stellane.testing.crash_campaign import CampaignReport, CrashCampaign

ORDERS = Path(__file__).parent / "orders.py"


def _table(report: CampaignReport) -> Table:
    table = Table(title=f"kill -9, seed {report.seed}", show_header=False)
    rows = {
        "workers killed": report.kills,
        "requests sent": report.sent,
        "answered at once": report.answered,
        "cut off by a kill": report.cut_off,
        "connections refused": report.refused,
        "replayed from the journal": report.replayed,
        "on record at the end": ", ".join(f"{count} {state}" for state, count in sorted(report.states.items())),
        "effects in the ledger": report.effects,
        "missing, or wrong in any way": len(report.errors),
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


async def _watch(campaign: CrashCampaign, seconds: float, console: Console) -> None:
    console.print("200 clients, 2 workers; a random worker is killed every 200 ms.")
    running = asyncio.create_task(campaign.kill_workers(seconds=seconds))
    with Live(_table(campaign.report), console=console, refresh_per_second=5) as live:
        while not running.done():
            await asyncio.sleep(0.2)
            live.update(_table(campaign.report))
        live.update(_table(await running))
    for error in campaign.report.errors[:20]:
        console.print(error, style="red")


@click.command()
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--journal", default="file", show_default=True)
@click.option("--backend", default="auto", show_default=True)
@click.option("--seed", type=int, help="Repeat the kills of an earlier run.")
def main(seconds: float, journal: str, backend: str, seed: int | None) -> None:
    """Kill workers for a while and account for every request."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="stellane-crash-") as directory:
        campaign = CrashCampaign(
            Path(directory), target=f"{ORDERS}:server", backend=backend, journal=journal, seed=seed
        )
        asyncio.run(_watch(campaign, seconds, console))
    raise SystemExit(1 if campaign.report.errors else 0)


if __name__ == "__main__":
    main()
