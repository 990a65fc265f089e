"""`stellane journal`: what a person can see of a journal, running server or not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from stellane.cli import main
from stellane.recovery.journal import Journal
from stellane.recovery.record import walk
from stellane.testing.journal_records import make_request
from stellane.testing.plain_journal import PlainJournal

PLUGIN = """
from stellane.hookspecs import hookimpl
from stellane.testing.plain_journal import PlainJournal

stellane_api_level = 1

@hookimpl
def stellane_create_journal(options):
    return PlainJournal()
"""


@pytest.fixture(autouse=True)
def plain_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plain engine as an installed plugin, found by the name in meta.json like any other."""
    site = tmp_path / "site"
    information = site / "plain_plugin-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-plugin\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[stellane.journals]\nplain = plain_plugin_of_this_test\n")
    (site / "plain_plugin_of_this_test.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("plain_plugin_of_this_test", None)


def run(*arguments: str) -> Result:
    """Run `stellane journal …`."""
    return CliRunner().invoke(main, ["journal", *arguments])


def read(*arguments: str) -> Any:
    """The JSON that a command prints."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.stdout)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[dict[str, Journal]]:
    """Two workers' journals, open for writing as in a running server."""
    root = tmp_path / ".stellane" / "journal"
    journals = {name: Journal.open(root / name, engine_name="plain", engine=PlainJournal()) for name in ("w0", "w1")}
    yield journals
    for journal in journals.values():
        journal.close(clean=False)


def test_ls_shows_every_worker_and_state(server: dict[str, Journal]) -> None:
    """Entries of all workers by their ids, while the server runs; --state picks some."""
    journal = server["w0"]
    done, dead = journal.begin(make_request(1)), journal.begin(make_request(2, method="PUT"))
    journal.done(done, 200, delivered=True)
    journal.attempt(dead, "killed by signal 9")
    journal.dead(dead, "too many attempts")
    server["w1"].begin(make_request(3))
    found = {entry["entry"]: entry for entry in read("ls")}
    assert {name: entry["state"] for name, entry in found.items()} == {
        "w0/1": "done",
        f"w0/{dead.entry_id}": "dead",
        "w1/1": "running",
    }
    assert found[f"w0/{dead.entry_id}"]["attempts"] == 1
    assert found["w0/1"]["status"] == 200
    assert [entry["entry"] for entry in read("ls", "--state", "dead", "--state", "running")] == [
        f"w0/{dead.entry_id}",
        "w1/1",
    ]
    table = run("ls").stdout
    for text in ("entry", "too many attempts", "PUT", "/orders/3?full=1", "w1/1"):
        assert text in table


def test_ls_takes_a_root_or_one_worker(server: dict[str, Journal], tmp_path: Path) -> None:
    """PATH may be either, and may be relative."""
    for journal in server.values():
        journal.begin(make_request(1))
    assert len(read("ls", ".stellane/journal")) == 2
    assert [entry["entry"] for entry in read("ls", str(server["w1"].path))] == ["w1/1"]


def test_show_tells_the_whole_story(server: dict[str, Journal]) -> None:
    """Head, body, attempts; what was redacted is named and not shown."""
    journal = server["w0"]
    request = make_request(7, body=b'{"amount": 5}')
    request.headers, request.redacted = journal.redactor().headers([*request.headers, (b"cookie", b"sid=canary")])
    entry = journal.begin(request)
    journal.responding(entry, 201)
    journal.attempt(entry, "killed by signal 11")
    journal.attempt_failed(entry, "TimeoutError: too slow")
    output = run("show", f"w0/{entry.entry_id}").stdout
    for text in (
        "POST /orders/7?full=1 HTTP/1.1",
        "idempotency-key: key-7",
        "cookie: (redacted)",
        '{"amount": 5}',
        "TimeoutError: too slow",
        "killed by signal 11",
        "started, status 201",
        request.traceparent,
    ):
        assert text in output
    assert "canary" not in output
    details = read("show", "w0/1")
    assert (details["redacted"], details["attempts"][0]["number"]) == (["cookie"], 1)


def test_show_escapes_what_a_terminal_would_obey(server: dict[str, Journal]) -> None:
    """A stranger's bytes are shown, not executed."""
    request = make_request(1, body=b"\x1b]0;owned\x07 line\nnext \xff")
    request.headers = [(b"x-evil", b"\x1b[2J")]
    request.target = b"/\x1b[31m"
    server["w0"].begin(request)
    for arguments in (("show", "w0/1"), ("ls",)):
        output = run(*arguments).stdout
        assert "\x1b" not in output
        assert "\x07" not in output
    assert "\\x1b]0;owned\\x07 line\nnext \\xff" in run("show", "w0/1").stdout


def test_show_says_when_a_body_was_not_kept(server: dict[str, Journal], tmp_path: Path) -> None:
    """An omitted body is not an empty one, and a long one is cut visibly."""
    journal = server["w0"]
    request = make_request(1)
    request.body_omitted, request.body_bytes = True, 5_000_000
    journal.begin(request)
    journal.begin(make_request(2, body=b"x" * 3000))
    assert "5000000 bytes was too large" in run("show", "w0/1").stdout
    assert "(1976 more bytes)" in run("show", "w0/2").stdout


@pytest.mark.parametrize(
    ("entry", "expected"), [("w0/99", "no entry w0/99"), ("nonsense", "like w0/17"), ("1", "say which one: w0/1, w1/1")]
)
def test_show_explains_a_bad_entry(server: dict[str, Journal], entry: str, expected: str) -> None:
    """What is wrong and what an id looks like."""
    result = run("show", entry)
    assert result.exit_code != 0
    assert expected in result.output


def test_verify_of_a_healthy_journal(server: dict[str, Journal]) -> None:
    """Exit 0, the number of records checked; a running server's journal is not torn."""
    for number in range(5):
        server["w0"].begin(make_request(number))
    server["w1"].close()
    result = run("verify")
    assert result.exit_code == 0
    assert "w0: 5 records checked (1 to 5); not closed" in result.output
    assert "w1: 1 records checked (1 to 1); closed cleanly" in result.output


def damage(journal: Journal, seq: int) -> None:
    """Flip a bit of one record."""
    file = journal.path / "engine" / "records"
    content = bytearray(file.read_bytes())
    found = next(found for found in walk(bytes(content)) if found.seq == seq)
    content[found.offset + 50] ^= 1
    file.write_bytes(content)


def test_verify_of_a_damaged_journal(server: dict[str, Journal]) -> None:
    """Exit 1 and the lost record, before a restart and after it; until the reports are moved away."""
    journal = server["w0"]
    for number in range(4):
        journal.begin(make_request(number))
    journal.close(clean=False)
    damage(journal, 2)
    before = run("verify")
    assert before.exit_code == 1
    assert "CORRUPTION" in before.output
    assert "record 2 is lost" in before.output
    assert "verify" in run("ls").stderr
    Journal.open(journal.path, engine_name="plain", engine=PlainJournal()).close()
    after = run("verify", str(journal.path))
    assert after.exit_code == 1
    assert "in quarantine: corruption-" in after.output
    verdict = msgspec.json.decode(run("verify", str(journal.path), "--json").stdout)[0]
    assert verdict["corruption"] == []
    for file in (journal.path / "quarantine").iterdir():
        file.unlink()
    assert run("verify", str(journal.path)).exit_code == 0


def test_verify_of_a_torn_journal(server: dict[str, Journal]) -> None:
    """A torn last write is what a crash leaves: told, and no failure."""
    journal = server["w0"]
    for number in range(2):
        journal.begin(make_request(number))
    journal.close(clean=False)
    damage(journal, 2)
    result = run("verify")
    assert result.exit_code == 0
    assert "torn" in result.output
    assert "1 records checked" in result.output


def test_verify_counts_a_damaged_copy_of_meta(server: dict[str, Journal]) -> None:
    """One of two copies is damage too."""
    (server["w0"].path / "meta.json.bak").write_bytes(b"{")
    result = run("verify")
    assert result.exit_code == 1
    assert "meta.json.bak" in result.output


def test_no_journal_is_an_error_that_says_where(tmp_path: Path) -> None:
    """Nothing there, and a directory without workers."""
    for path in (tmp_path / "nowhere", tmp_path):
        result = run("ls", str(path))
        assert result.exit_code == 1
        assert f"{path}: there is no journal here" in result.output


def test_a_worker_killed_while_it_made_its_journal_hides_no_other(server: dict[str, Journal]) -> None:
    """Its directory holds a draft and no journal: the others' entries and verdicts are shown all the same."""
    server["w0"].begin(make_request(1))
    unmade = server["w0"].path.parent / "w2"
    unmade.mkdir(mode=0o700)
    (unmade / "meta.json.4711.tmp").write_bytes(b"{")
    assert [entry["entry"] for entry in read("ls")] == ["w0/1"]
    assert {verdict["slot"] for verdict in read("verify")} == {"w0", "w1"}
    assert len(read("show", "w0/1")) > 0


def test_drafts_alone_are_no_journal(tmp_path: Path) -> None:
    """The error says so, and where."""
    (tmp_path / "w0").mkdir(mode=0o700)
    result = run("ls", str(tmp_path))
    assert result.exit_code == 1
    assert f"{tmp_path}: there is no journal here" in result.output


def test_an_engine_that_is_not_installed_is_named(server: dict[str, Journal], monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal says which engine wrote it; the error says that it is missing."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not entry.endswith("site")])
    result = run("ls")
    assert result.exit_code == 2
    assert "no journal named 'plain' is installed" in result.output
