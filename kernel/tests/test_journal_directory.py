"""The journal's directory: for its owner alone, of one engine, one format and one journal."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import msgspec
import pytest
from crc32c import crc32c

from stellane.errors import JournalCorrupt, JournalError, JournalUnsupported
from stellane.recovery import directory
from stellane.recovery.directory import Meta
from stellane.recovery.journal import Journal
from stellane.recovery.record import RecordType, encode
from stellane.recovery.redact import TAG_BYTES
from stellane.testing.journal_records import make_request
from stellane.testing.plain_journal import PlainJournal


def open_journal(path: Path, engine_name: str = "plain") -> Journal:
    """Open it for writing."""
    return Journal.open(path, engine_name=engine_name, engine=PlainJournal())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with one pending request, closed."""
    journal = open_journal(tmp_path / "root" / "w0")
    journal.begin(make_request(1))
    journal.close()
    return tmp_path / "root" / "w0"


def test_everything_is_for_the_owner_alone(path: Path) -> None:
    """Directories 0700, files 0600, whatever the umask."""
    found = {child: stat.S_IMODE(child.stat().st_mode) for child in [path, *path.rglob("*")]}
    assert {mode for child, mode in found.items() if child.is_dir()} == {0o700}
    assert {mode for child, mode in found.items() if child.is_file()} == {0o600}


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o777, 0o701])
def test_a_directory_others_may_enter_is_refused(path: Path, mode: int) -> None:
    """The error says what to do."""
    path.chmod(mode)
    with pytest.raises(JournalError, match="chmod 700"):
        open_journal(path)


@pytest.mark.parametrize("name", ["engine", "quarantine"])
def test_the_directories_inside_are_checked_too(path: Path, name: str) -> None:
    """A group may not get in one level below."""
    (path / name).chmod(0o770)
    with pytest.raises(JournalError, match="chmod 700"):
        open_journal(path)


def test_a_symbolic_link_is_refused(path: Path) -> None:
    """For the directory itself, and for a file in it."""
    link = path.with_name("w1")
    link.symlink_to(path)
    with pytest.raises(JournalError, match="symbolic link"):
        open_journal(link)
    (path / "meta.json").rename(path / "elsewhere")
    (path / "meta.json").symlink_to(path / "elsewhere")
    with pytest.raises(JournalError, match="symbolic link"):
        open_journal(path)


def test_anothers_directory_is_refused(path: Path) -> None:
    """The error names both users."""
    if os.geteuid() != 0:
        pytest.skip("not run: giving a directory to another user needs root")
    os.chown(path, 12345, 12345)
    with pytest.raises(JournalError, match="12345"):
        open_journal(path)


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    """A path that is a file is refused, not replaced."""
    (tmp_path / "w0").write_bytes(b"mine")
    with pytest.raises(JournalError):
        open_journal(tmp_path / "w0")
    assert (tmp_path / "w0").read_bytes() == b"mine"


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    """A journal is not put among other files."""
    (tmp_path / "w0").mkdir(mode=0o700)
    (tmp_path / "w0" / "notes.txt").write_bytes(b"mine")
    with pytest.raises(JournalCorrupt, match="not a journal"):
        open_journal(tmp_path / "w0")
    assert [child.name for child in (tmp_path / "w0").iterdir()] == ["notes.txt"]


def test_an_interrupted_creation_is_completed(tmp_path: Path) -> None:
    """Empty directories and a draft without meta.json are no obstacle."""
    for name in ("w0", "w0/engine", "w0/quarantine"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "w0" / "meta.json.17.tmp").write_bytes(b"{")
    open_journal(tmp_path / "w0").close()
    assert (tmp_path / "w0" / "meta.json").is_file()


@pytest.mark.parametrize("name", ["meta.json", "meta.json.bak", "secret"])
def test_a_draft_of_a_killed_process_of_the_same_number_is_no_obstacle(tmp_path: Path, name: str) -> None:
    """In a container the pid is the same at every start."""
    (tmp_path / "w0").mkdir(mode=0o700)
    draft = tmp_path / "w0" / f"{name}.{os.getpid()}.tmp"
    draft.write_bytes(b"{")
    journal = open_journal(tmp_path / "w0")
    assert len(journal.redactor().tag(b"authorization", b"x")) == TAG_BYTES
    journal.close()
    assert not draft.exists()


def test_another_engines_journal_is_refused_by_both_names(path: Path) -> None:
    """The error tells how to open it."""
    with pytest.raises(JournalUnsupported, match=r"'plain'.*'other'") as caught:
        open_journal(path, engine_name="other")
    assert 'journal_backend = "plain"' in str(caught.value)


def test_another_format_is_refused_by_both_versions(path: Path) -> None:
    """A newer journal is neither read nor repaired."""
    meta = msgspec.json.decode((path / "meta.json").read_bytes(), type=Meta)
    newer = msgspec.json.encode(msgspec.structs.replace(meta, format=2).sealed())
    fields = msgspec.json.decode(newer) | {"check": 0, "key_id": "a field of that format"}
    fields["check"] = crc32c(msgspec.json.encode(fields, order="sorted"))
    for content in (newer, msgspec.json.encode(fields)):
        for name in ("meta.json", "meta.json.bak"):
            (path / name).write_bytes(content)
        with pytest.raises(JournalUnsupported, match=r"format 2.*format 1"):
            open_journal(path)
        assert (path / "meta.json").read_bytes() == content


@pytest.mark.parametrize("name", ["meta.json", "meta.json.bak"])
def test_every_bit_of_meta_is_guarded_and_one_copy_is_enough(path: Path, name: str) -> None:
    """Damage to either copy changes nothing, and the copy is put right."""
    original = (path / name).read_bytes()
    for offset in range(0, len(original), 7):
        content = bytearray(original)
        content[offset] ^= 4
        (path / name).write_bytes(content)
        journal = open_journal(path)
        assert len(journal.pending()) == 1
        journal.close()
        assert (path / name).read_bytes() == original
    (path / name).unlink()
    open_journal(path).close()
    assert (path / name).read_bytes() == original


def test_without_a_good_copy_of_meta_it_is_not_opened(path: Path) -> None:
    """Records cannot be believed without the journal's id."""
    for name in ("meta.json", "meta.json.bak"):
        (path / name).write_bytes(b"{}")
    with pytest.raises(JournalCorrupt, match=r"meta\.json"):
        open_journal(path)


def test_copies_of_two_journals_are_refused(path: Path, tmp_path: Path) -> None:
    """A mixed-up backup is noticed."""
    open_journal(tmp_path / "w9").close()
    (path / "meta.json").write_bytes((tmp_path / "w9" / "meta.json").read_bytes())
    with pytest.raises(JournalCorrupt, match="different journals"):
        open_journal(path)


def test_another_journals_records_are_refused(path: Path, tmp_path: Path) -> None:
    """An engine directory moved over whole is not this journal's."""
    other = open_journal(tmp_path / "w9")
    other.begin(make_request(1))
    other.close()
    content = (tmp_path / "w9" / "engine" / "records").read_bytes()
    (path / "engine" / "records").write_bytes(content)
    with pytest.raises(JournalCorrupt, match="another journal"):
        open_journal(path)
    assert (path / "engine" / "records").read_bytes() == content


def test_records_of_a_newer_version_are_refused(path: Path) -> None:
    """An intact record of a later format is not taken for damage and cut off."""
    journal_id = int(msgspec.json.decode((path / "meta.json").read_bytes(), type=Meta).journal_id, 16)
    raw, _ = encode(RecordType.MARK, 3, 2, journal_id, 9, 0, b"")
    later = bytearray(raw)
    later[14] = 2
    later[4:8] = crc32c(bytes(later[8:])).to_bytes(4, "little")
    file = path / "engine" / "records"
    file.write_bytes(file.read_bytes() + later)
    before = file.read_bytes()
    with pytest.raises(JournalUnsupported, match="newer version"):
        open_journal(path)
    assert file.read_bytes() == before


def test_the_secret_stays_and_a_damaged_one_is_replaced(path: Path) -> None:
    """Tags compare across restarts; without the key new ones do not stop the server."""
    tags = []
    for _ in range(2):
        journal = open_journal(path)
        tags.append(journal.redactor().tag(b"authorization", b"x"))
        journal.close()
    assert tags[0] == tags[1]
    (path / "secret").write_bytes(b"short")
    journal = open_journal(path)
    assert journal.redactor().tag(b"authorization", b"x") != tags[0]
    journal.close()
    assert len((path / "secret").read_bytes()) == 32


def test_what_the_system_refuses_is_our_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker says in one line why it cannot start: a file that cannot be read, no space for the key."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(directory, "_replace", refuse)
    journal = open_journal(path)
    (path / "secret").unlink(missing_ok=True)
    with pytest.raises(JournalError, match=r"secret: .*No space left"):
        journal.redactor()
    journal.close()
    monkeypatch.undo()
    (path / "meta.json").unlink()
    (path / "meta.json").mkdir()
    with pytest.raises(JournalError, match=r"meta.json: cannot be read: Is a directory"):
        open_journal(path)
