"""The crash proof: requests in flight, workers killed with SIGKILL, and every request accounted for.

    campaign = CrashCampaign(directory, backend="libuv", journal="file")
    report = await campaign.kill_workers(seconds=20.0)
    report.check()

Three independent witnesses are compared: the clients (what was sent, what was answered), the
ledger of effects that the handlers of examples/orders.py append to, and the journal. A
request that is on record and has no end, an effect that is not on record, an answer that is
not on record as done, or a trace id that changed is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stellane.abc import EntryState
from stellane.app.trace import new_traceparent
from stellane.config import Config, RecoveryConfig
from stellane.factory import RuntimeFactory
from stellane.recovery.directory import read_meta
from stellane.recovery.journal import Journal

READY_TIMEOUT_S = 20.0
SETTLE_TIMEOUT_S = 90.0
"""How long recovery may take after the last kill, seconds."""
EVERY_S_MAX = 3.0
"""The longest pause between two kills, seconds."""
PROGRESS_TIMEOUT_S = 60.0
"""How much longer the killing goes on until it has met what it is to meet, seconds: on a crowded
machine few workers live long enough to answer."""


@dataclass
class CampaignReport:
    """What the three witnesses say. `errors` is empty when they agree and nothing is missing."""

    seed: int
    kills: int = 0
    sent: int = 0
    answered: int = 0
    answered_between_kills: int = 0
    """Those of `answered` that came before the last kill."""
    cut_off: int = 0
    """Requests whose connection ended without an answer, because their worker was killed."""
    refused: int = 0
    states: Counter[str] = field(default_factory=Counter)
    """Journal entries by state at the end."""
    replayed: int = 0
    """Journal entries with at least one recorded replay."""
    effects: int = 0
    released: int = 0
    """Requests that had finished and left the journal because a torn tail was cut off."""
    errors: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raise AssertionError with the seed and the first errors when something is wrong."""
        if self.errors:
            shown = "\n".join(self.errors[:20])
            raise AssertionError(f"seed {self.seed}: {len(self.errors)} errors, the first of them:\n{shown}")


class CrashCampaign:
    """One server on one journal in `directory`, its clients and its killer."""

    def __init__(
        self,
        directory: Path,
        *,
        target: str,
        backend: str,
        journal: str,
        workers: int = 2,
        clients: int = 200,
        work_ms: int = 50,
        seed: int | None = None,
    ) -> None:
        self.directory = directory
        self.seed = random.randrange(2**32) if seed is None else seed
        self.report = CampaignReport(self.seed)
        self._target = target
        self._backend = backend
        self._journal = journal
        self._workers = workers
        self._clients = clients
        self._work_ms = work_ms
        self._random = random.Random(self.seed)
        self._ledger = directory / "effects.jsonl"
        self._server: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._sent: dict[str, str] = {}
        self._answered: set[str] = set()
        self._stopping = False

    # --- the server -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start `stellane run` and wait until it answers."""
        config = self.directory / "stellane.config.toml"
        config.write_text(
            f'[runtime]\nbackend = "{self._backend}"\nworker_threads = {self._workers}\n'
            "restart_delay_s = 0.05\nrestart_delay_s_max = 0.2\n"
            f'[recovery]\nenabled = true\njournal_backend = "{self._journal}"\n'
            f'journal_path = "{self.directory / "journal"}"\nmax_recovery_attempts = 20\nconcurrency = 100\n'
            "snapshot_bytes = 1073741824\n"  # every record of the campaign is kept for the accounting
        )
        if not self._port:
            self._port = _free_port()
        with (self.directory / "server.log").open("ab") as log:
            self._server = subprocess.Popen(  # noqa: ASYNC220 - starting it is quick
                [
                    *(sys.executable, "-m", "stellane", "run", self._target),
                    *("--config", str(config), "--port", str(self._port), "--log-level", "warning"),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "ORDERS_LEDGER": str(self._ledger)},
            )
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not await self._answers():
            if time.monotonic() > deadline or self._server.poll() is not None:
                raise AssertionError(f"the server did not start:\n{self.log_tail()}")
            await asyncio.sleep(0.05)

    def log_tail(self) -> str:
        """The end of the server's log."""
        return "\n".join((self.directory / "server.log").read_text(errors="replace").splitlines()[-20:])

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return False
        try:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return (await reader.read(12)).startswith(b"HTTP/1.1")
        except OSError:
            return False
        finally:
            writer.close()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are alive (proc(5), task/…/children)."""
        assert self._server is not None
        children = Path(f"/proc/{self._server.pid}/task/{self._server.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def stop(self) -> int:
        """SIGTERM, and wait; returns the exit code."""
        assert self._server is not None
        self._server.send_signal(signal.SIGTERM)
        return self._server.wait(30)

    def kill_everything(self) -> None:
        """SIGKILL the supervisor and all workers at once."""
        assert self._server is not None
        # The supervisor first comes to a stand: it would replace a worker that dies before itself.
        _stop_now(self._server.pid)
        for pid in [*self.worker_pids(), self._server.pid]:
            _kill(pid)
        self._server.wait(10)

    # --- the campaigns ----------------------------------------------------------------------------

    async def kill_workers(self, *, seconds: float, every_s: float = 0.2) -> CampaignReport:
        """Keep `clients` requests in flight and kill a random worker every `every_s` seconds.

        Goes on for at most PROGRESS_TIMEOUT_S more until requests were cut off, answered and replayed.
        """
        await self.start()
        report = self.report
        try:
            clients = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
            end = time.monotonic() + seconds
            while (now := time.monotonic()) < end or (
                now < end + PROGRESS_TIMEOUT_S and not await self._met_everything()
            ):
                if now >= end:
                    # A machine on which no worker lives long enough to answer needs more time between kills.
                    every_s = min(every_s * 1.2, EVERY_S_MAX)
                await asyncio.sleep(every_s)
                pids = self.worker_pids()
                if pids:
                    report.answered_between_kills = report.answered
                    _kill(self._random.choice(pids))
                    report.kills += 1
            self._stopping = True
            await asyncio.gather(*clients)
            await self._settle()
        finally:
            code = self.stop()
        if code != 0:
            self.report.errors.append(f"the server's exit code after SIGTERM is {code}")
        self._account()
        return self.report

    async def kill_all_and_restart(self, *, after_s: float = 1.0) -> CampaignReport:
        """With `clients` requests in flight, kill supervisor and workers at once; start again."""
        await self.start()
        clients = [asyncio.create_task(self._client(number)) for number in range(self._clients)]
        await asyncio.sleep(after_s)
        await self._freeze_in_flight()
        self._stopping = True  # clients do not come again while there is no listener
        self.report.kills += 1 + len(self.worker_pids())
        self.kill_everything()
        await asyncio.gather(*clients)
        await self.start()
        try:
            await self._settle()
        finally:
            code = self.stop()
        if code != 0:
            self.report.errors.append(f"the server's exit code after SIGTERM is {code}")
        self._account()
        return self.report

    async def _met_everything(self) -> bool:
        """Whether the kills so far cut requests off, left others time to be answered, and led to a replay."""
        report = self.report
        if not (report.cut_off and report.answered_between_kills):
            return False
        return any(entry.attempts for entry in await asyncio.to_thread(self._read_journals))

    async def _freeze_in_flight(self) -> None:
        """Stop the workers (SIGSTOP) at a moment when orders have started that have not finished.

        Between looking and killing nothing can finish then, however late the killer gets its turn.
        """
        deadline = time.monotonic() + PROGRESS_TIMEOUT_S
        while True:
            pids = self.worker_pids()
            for pid in pids:
                _stop_now(pid)
            events = Counter(json.loads(line)["event"] for line in self._ledger_lines())
            if events["started"] > events["finished"] or time.monotonic() > deadline:
                return
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.02)

    async def _client(self, number: int) -> None:
        """One client: a new order on a new connection, again and again."""
        count = 0
        while not self._stopping:
            order = f"{number}-{count}"
            count += 1
            try:
                await self._order(order)
            except ConnectionRefusedError:
                self.report.refused += 1
                await asyncio.sleep(0.05)
            except (OSError, asyncio.IncompleteReadError):
                self.report.cut_off += 1

    async def _order(self, order: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        traceparent = new_traceparent()
        body = json.dumps({"order": order, "padding": "x" * 300}).encode()
        try:
            self._sent[order] = traceparent
            self.report.sent += 1
            work_ms = self._random.randrange(self._work_ms // 2, self._work_ms * 2)
            writer.write(
                b"POST /orders?work_ms=%d HTTP/1.1\r\nHost: x\r\ntraceparent: %b\r\nx-request-id: order-%b\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\nConnection: close\r\n\r\n%b"
                % (work_ms, traceparent.encode(), order.encode(), len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if 200 <= status < 300:
                self._answered.add(order)
                self.report.answered += 1
            elif status != 503:
                self.report.errors.append(f"order {order} was answered {status}")
        finally:
            writer.close()

    async def _settle(self) -> None:
        """Wait until the journals show no request without an end."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        open_states = (EntryState.RUNNING, EntryState.PENDING, EntryState.RECOVERING)
        while True:
            await asyncio.sleep(0.3)
            entries = await asyncio.to_thread(self._read_journals)
            waiting = sum(entry.state in open_states for entry in entries)
            if not waiting:
                return
            if time.monotonic() > deadline:
                self.report.errors.append(f"{waiting} requests have no end {SETTLE_TIMEOUT_S} s after the last kill")
                return

    def _read_journals(self) -> list[Any]:
        """Every entry of every slot, read beside the server."""
        recovery = RecoveryConfig(journal_backend=self._journal)
        factory = RuntimeFactory(Config(recovery=recovery), environ={})
        entries = []
        for directory in sorted((self.directory / "journal").glob("w*")):
            if read_meta(directory, []) is None:
                continue  # its worker was killed, or is still, on the way to making its first journal
            journal = Journal.open(
                directory,
                engine_name=self._journal,
                engine=factory.create_journal(),
                read_only=True,
                create=False,
            )
            entries += journal.entries()
            journal.close()
        return entries

    def _ledger_lines(self) -> list[str]:
        """The ledger's whole lines; none before the first effect."""
        return self._ledger.read_text().splitlines() if self._ledger.exists() else []

    def _torn_tails(self) -> list[Path]:
        """What the journals cut off and kept in quarantine."""
        return sorted((self.directory / "journal").glob("w*/quarantine/*"))

    # --- the accounting -----------------------------------------------------------------------------

    def _account(self) -> None:
        report = self.report
        entries = {entry.request.request_id.removeprefix("order-"): entry for entry in self._read_journals()}
        report.states = Counter(str(entry.state) for entry in entries.values())
        report.replayed = sum(bool(entry.attempts) for entry in entries.values())
        effects = [json.loads(line) for line in self._ledger_lines()]
        report.effects = len(effects)
        finished = {effect["order"] for effect in effects if effect["event"] == "finished"}
        # A SIGKILL in the middle of a write leaves a torn tail. Who opens the journal then writes what is live anew
        # and releases the rest, so a request may be missing, but only then and only when it had finished.
        released = finished - set(entries) if self._torn_tails() else set()
        report.released = len(released)
        for effect in effects:
            order = effect["order"]
            if order not in entries and order not in released:
                report.errors.append(f"order {order} had an effect and is not on record")
            elif effect["trace_id"] != self._sent[order].split("-")[1]:
                report.errors.append(f"order {order}: the effect has trace id {effect['trace_id']}")
        for order, entry in entries.items():
            if entry.state not in (EntryState.DONE, EntryState.FAILED, EntryState.DEAD, EntryState.ORPHAN):
                report.errors.append(f"order {order} is on record as {entry.state} and has no end")
            if entry.state is EntryState.DONE and order not in finished:
                report.errors.append(f"order {order} is done on record and its effect is missing")
            if entry.request.traceparent != self._sent.get(order):
                report.errors.append(f"order {order} is on record with trace {entry.request.traceparent}")
        for order in self._answered - released:
            if order not in entries or entries[order].state is not EntryState.DONE:
                report.errors.append(f"order {order} was answered and is not on record as done")
        if report.refused:
            report.errors.append(f"{report.refused} connections were refused")


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it died by itself a moment ago


def _stop_now(pid: int) -> None:
    """SIGSTOP, and wait until every thread stands still: the signal alone is only a request (proc(5), state T)."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while any(state not in "TtZX" for state in _thread_states(pid)):
        if time.monotonic() > deadline:
            raise AssertionError(f"process {pid} did not stop within {READY_TIMEOUT_S} s of SIGSTOP")
        time.sleep(0.001)


def _thread_states(pid: int) -> list[str]:
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            states.append(stat.read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue  # the thread has ended
    return states


def _free_port() -> int:
    """A port outside ip_local_port_range: no connection of somebody else's gets it while the server is down."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(low // 2, low)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
