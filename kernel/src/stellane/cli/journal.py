"""`stellane journal`: what is in a request journal, and whether it is whole.

Everything here only reads, and may be used while a server writes to the journal.
"""

from __future__ import annotations

import datetime
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from stellane.abc import EntryState
from stellane.cli.table import print_table
from stellane.config import LoadedConfig, load
from stellane.errors import JournalError
from stellane.factory import RuntimeFactory
from stellane.recovery.checker import ScanReport
from stellane.recovery.directory import check_private, read_meta
from stellane.recovery.journal import Journal, LedgerEntry

BODY_PREVIEW_BYTES = 1024
VERIFY_TRIES_MAX = 4
VERIFY_DELAY_S = 0.05
"""What a server is just writing or moving may look damaged: look again after this long, seconds."""

_SLOT = re.compile(r"\Aw([0-9]+)\Z")
_ENTRY = re.compile(r"\A(?:w([0-9]+)/)?([0-9]+)\Z")

_config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The configuration file.  [default: stellane.config.toml, if it is there]",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_path_help = "The journal's directory or one worker's directory in it.  [default: recovery.journal_path]"


@dataclass(frozen=True, slots=True)
class Slot:
    """The journal of one worker."""

    name: str
    path: Path
    journal: Journal


@click.group()
def journal() -> None:
    """Look into a request journal. Nothing is changed, and a server may be running."""


@journal.command("ls")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([str(state) for state in EntryState]),
    help="Only entries in this state; may be given more than once.",
)
@_json_option
@_config_option
def list_entries(path: Path | None, states: tuple[str, ...], as_json: bool, config_path: Path | None) -> None:
    """List the requests on record in PATH.

    Requests that are done or failed are on record until the next snapshot drops them.
    """
    found = [
        (slot, entry)
        for slot in _open_all(path, load(config_path))
        for entry in slot.journal.entries()
        if not states or entry.state in states
    ]
    if as_json:
        _print_json([_summary(slot, entry) for slot, entry in found])
        return
    rows = [
        [
            _entry_name(slot, entry),
            str(entry.state),
            entry.request.method,
            _printable(entry.request.target),
            _moment(entry.first_received_ns),
            str(len(entry.attempts)),
            str(entry.status or "-"),
            _printable(entry.reason.encode()),
        ]
        for slot, entry in found
    ]
    print_table(["entry", "state", "method", "target", "received", "attempts", "status", "why"], rows)


@journal.command("show")
@click.argument("entry")
@click.option("--path", type=click.Path(path_type=Path), help=_path_help)
@_json_option
@_config_option
def show_entry(entry: str, path: Path | None, as_json: bool, config_path: Path | None) -> None:
    """Show one request: ENTRY is an id as `ls` prints it, like w0/17."""
    match = _ENTRY.match(entry)
    if match is None:
        raise click.BadParameter(f"{entry!r} is not an entry id like w0/17", param_hint="ENTRY")
    slots = _open_all(path, load(config_path))
    wanted = [slot for slot in slots if match[1] is None or slot.name == f"w{match[1]}"]
    if match[1] is None and len(slots) > 1:
        names = ", ".join(f"{slot.name}/{match[2]}" for slot in slots)
        raise click.BadParameter(f"there are {len(slots)} workers; say which one: {names}", param_hint="ENTRY")
    for slot in wanted:
        for found in slot.journal.entries():
            if found.entry_id == int(match[2]):
                _show(slot, found, as_json=as_json)
                return
    raise JournalError(f"there is no entry {entry} on record; it may be done and dropped by a snapshot")


@journal.command("verify")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@_json_option
@_config_option
def verify(path: Path | None, as_json: bool, config_path: Path | None) -> None:
    """Check every record in PATH.

    Exit code 0: whole. 1: acknowledged records are damaged or missing, now or in a report in
    quarantine. A torn last write is what a crash leaves and is no damage.
    """
    loaded = load(config_path)
    verdicts = [_verify(name, slot_path, loaded) for name, slot_path in _slots(path, loaded)]
    if as_json:
        _print_json(verdicts)
    else:
        for verdict in verdicts:
            _print_verdict(verdict)
    if any(verdict["corruption"] or verdict["corruption_reports"] for verdict in verdicts):
        sys.exit(1)


# --- Finding and opening ------------------------------------------------------------------------


def _slots(path: Path | None, loaded: LoadedConfig) -> list[tuple[str, Path]]:
    """The worker directories of a journal: (name, path)."""
    root = path if path is not None else Path(loaded.config.recovery.journal_path)
    if not root.is_dir():
        raise JournalError(f"{root}: there is no journal here", path=root)
    if (root / "meta.json").exists() or (root / "meta.json.bak").exists():
        return [(root.name if _SLOT.match(root.name) else "w0", root)]
    numbered = sorted((int(match[1]), child) for child in root.iterdir() if (match := _SLOT.match(child.name)))
    if not numbered:
        raise JournalError(f"{root}: there is no journal here: no worker's directory like w0 in it", path=root)
    made = [(child.name, child) for _, child in numbered if _is_made(child)]
    if not made:
        raise JournalError(f"{root}: there is no journal here: no worker has made its own yet", path=root)
    return made


def _is_made(slot_path: Path) -> bool:
    """Whether the worker got as far as making its journal; one that is killed just then leaves a draft."""
    check_private(slot_path)
    return read_meta(slot_path, []) is not None


def _open(path: Path, loaded: LoadedConfig) -> Journal:
    check_private(path)
    meta = read_meta(path, [])
    if meta is None:
        raise JournalError(f"{path}: there is no journal here", path=path)
    recovery = msgspec.structs.replace(loaded.config.recovery, journal_backend=meta.engine)
    config = msgspec.structs.replace(loaded.config, recovery=recovery)
    engine = RuntimeFactory(config, loaded.origins).create_journal()
    return Journal.open(path, engine_name=meta.engine, engine=engine, read_only=True, create=False)


def _open_all(path: Path | None, loaded: LoadedConfig) -> list[Slot]:
    slots = []
    for name, slot_path in _slots(path, loaded):
        opened = _open(slot_path, loaded)
        # The entries are in memory; the engine is not needed any more.
        opened.close()
        slots.append(Slot(name, slot_path, opened))
        if opened.report.corruption:
            click.echo(f"{slot_path}: the journal is damaged; run: stellane journal verify {slot_path}", err=True)
    return slots


# --- Showing ------------------------------------------------------------------------------------


def _entry_name(slot: Slot, entry: LedgerEntry) -> str:
    return f"{slot.name}/{entry.entry_id}"


def _summary(slot: Slot, entry: LedgerEntry) -> dict[str, Any]:
    request = entry.request
    return {
        "entry": _entry_name(slot, entry),
        "state": str(entry.state),
        "request_id": request.request_id,
        "method": request.method,
        "target": _printable(request.target),
        "received_ns": request.received_ns,
        "attempts": len(entry.attempts),
        "response_started": entry.response_started,
        "status": entry.status,
        "delivered": entry.delivered,
        "reason": entry.reason,
        "body_bytes": request.body_bytes,
        "body_omitted": request.body_omitted,
    }


def _details(slot: Slot, entry: LedgerEntry) -> dict[str, Any]:
    request = entry.request
    return _summary(slot, entry) | {
        "attempts": [msgspec.to_builtins(attempt) for attempt in entry.attempts],
        "http_version": request.http_version,
        "scheme": request.scheme,
        "client": request.client,
        "headers": [[_printable(name), _printable(value)] for name, value in request.headers],
        "redacted": list(request.redacted_names),
        "traceparent": request.traceparent,
        "tracestate": request.tracestate,
        "body": _printable(request.body[:BODY_PREVIEW_BYTES], lines=True),
    }


def _show(slot: Slot, entry: LedgerEntry, *, as_json: bool) -> None:
    details = _details(slot, entry)
    if as_json:
        _print_json(details)
        return
    request = entry.request
    click.echo(f"{details['entry']}  {details['state']}  {details['reason']}".rstrip())
    click.echo(f"request id    {_printable(request.request_id.encode())}")
    click.echo(f"received      {_moment(request.received_ns)}")
    click.echo(f"traceparent   {request.traceparent or '-'}")
    started = "started" if entry.response_started else "not started"
    click.echo(f"response      {started}" + (f", status {entry.status}" if entry.status else ""))
    for attempt in entry.attempts:
        outcome = attempt.error or "no end on record"
        after = f"; before it the worker was {attempt.crash}" if attempt.crash else ""
        click.echo(f"attempt {attempt.number}     {_moment(attempt.started_ns)}: {_printable(outcome.encode())}{after}")
    click.echo(f"\n{_printable(request.method.encode())} {details['target']} HTTP/{request.http_version}")
    for name, value in details["headers"]:
        click.echo(f"{name}: {value}")
    for name in request.redacted_names:
        click.echo(f"{_printable(name.encode())}: (redacted)")
    click.echo()
    if request.body_omitted:
        click.echo(f"(the body of {request.body_bytes} bytes was too large to be journaled)")
        return
    click.echo(details["body"])
    if len(request.body) > BODY_PREVIEW_BYTES:
        click.echo(f"({len(request.body) - BODY_PREVIEW_BYTES} more bytes)")


# --- Verifying ----------------------------------------------------------------------------------


def _verify(name: str, path: Path, loaded: LoadedConfig) -> dict[str, Any]:
    opened = _open(path, loaded)
    opened.close()
    for _ in range(VERIFY_TRIES_MAX - 1):
        if opened.report.torn is None and not opened.report.corruption:
            break
        time.sleep(VERIFY_DELAY_S)
        opened = _open(path, loaded)
        opened.close()
    notes: list[str] = []
    read_meta(path, notes)
    report: ScanReport = opened.report
    quarantined = sorted(file.name for file in (path / "quarantine").glob("*"))
    return {
        "slot": name,
        "path": str(path),
        "records": report.records,
        "first_seq": report.first_seq,
        "last_seq": report.last_seq,
        "acknowledged_seq": report.acknowledged_seq,
        "clean": report.clean,
        "torn": str(report.torn) if report.torn is not None else None,
        "corruption": [str(damage) for damage in report.corruption] + notes,
        "lost": report.lost,
        "quarantine": quarantined,
        "corruption_reports": [file for file in quarantined if file.startswith("corruption-")],
    }


def _print_verdict(verdict: dict[str, Any]) -> None:
    records = f"{verdict['records']} records checked"
    if verdict["records"]:
        records += f" ({verdict['first_seq']} to {verdict['last_seq']})"
    ending = "closed cleanly" if verdict["clean"] else "not closed: in use, or left by a crash"
    click.echo(f"{verdict['slot']}: {records}; {ending}")
    if verdict["torn"] is not None:
        click.echo(f"  torn: {verdict['torn']}. The next start copies it to quarantine and removes it.")
    for damage in verdict["corruption"]:
        click.echo(f"  CORRUPTION: {damage}")
    for file in verdict["quarantine"]:
        click.echo(f"  in quarantine: {file}")
    if verdict["corruption_reports"]:
        click.echo(
            f"  {len(verdict['corruption_reports'])} file(s) tell of corruption found earlier; "
            f"move them out of {verdict['path']}/quarantine once they are dealt with"
        )


def _print_json(document: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document)))


def _moment(nanoseconds: int) -> str:
    """A wall-clock time as ISO 8601, UTC, with milliseconds."""
    moment = datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(content: bytes, *, lines: bool = False) -> str:
    """Text that a terminal cannot take for commands: what strangers sent is shown escaped."""
    text = content.decode("utf-8", "backslashreplace")
    kept = "\n\t" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode() for char in text
    )
