"""The directory of one journal: who may own it, what it is, where damaged bytes go.

    meta.json, meta.json.bak   format, engine, journal id; two copies with a checksum each
    secret                     32 random bytes: the HMAC key of redacted values
    engine/                    the engine's own
    quarantine/                copies of damaged bytes, with a report beside them

A journal holds what clients sent, so the directory is for its owner alone (mode 0700, files
0600), is never reached through a symbolic link, and is refused otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
from crc32c import crc32c

from stellane.errors import JournalCorrupt, JournalError, JournalFull, JournalUnsupported

FORMAT_VERSION = 1
SECRET_BYTES = 32
META_BYTES_MAX = 65_536

_META_NAMES = ("meta.json", "meta.json.bak")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Meta(msgspec.Struct, frozen=True, kw_only=True):
    """meta.json. `check` is the CRC-32C of the other fields as JSON, keys sorted."""

    format: int
    engine: str
    journal_id: str
    """16 hexadecimal digits."""
    created_ns: int
    check: int = 0

    def sealed(self) -> Meta:
        """The same with its checksum."""
        plain = msgspec.structs.replace(self, check=0)
        return msgspec.structs.replace(plain, check=crc32c(msgspec.json.encode(plain, order="sorted")))


class JournalDirectory:
    """An opened journal directory. `notes` tells what had to be repaired."""

    def __init__(self, path: Path, meta: Meta, notes: list[str]) -> None:
        self.path = path
        self.meta = meta
        self.journal_id = int(meta.journal_id, 16)
        self.notes = notes
        self._secret: bytes | None = None

    @property
    def engine_path(self) -> Path:
        """Where the engine keeps its files."""
        return self.path / "engine"

    @property
    def quarantine_path(self) -> Path:
        """Where copies of damaged bytes are kept."""
        return self.path / "quarantine"

    @property
    def secret(self) -> bytes:
        """The HMAC key of redacted values; made when there is none yet."""
        if self._secret is None:
            self._secret = self._read_secret()
        return self._secret

    def quarantine(self, name: str, content: bytes) -> Path:
        """Keep `content` as quarantine/<name>, on disk when this returns.

        Raises JournalFull or JournalError: the caller must not go on to remove the original.
        """
        path = self.quarantine_path / name
        try:
            write_new(path, content)
            sync_directory(self.quarantine_path)
        except OSError as error:
            if not isinstance(error, FileExistsError):
                # What a full disk took of it is no copy, and the next try has another name.
                with contextlib.suppress(OSError):
                    path.unlink()
            kind = JournalFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else JournalError
            text = f"{path}: cannot keep a copy of damaged journal bytes: {error.strerror}; without it they stay"
            raise kind(text, path=self.path) from error
        return path

    def quarantined(self) -> list[Path]:
        """What is in quarantine, oldest first."""
        try:
            return sorted(self.quarantine_path.iterdir())
        except FileNotFoundError:
            return []

    def _read_secret(self) -> bytes:
        path = self.path / "secret"
        found = _read(path)
        if found is not None and len(found) == SECRET_BYTES:
            return found
        made = secrets.token_bytes(SECRET_BYTES)
        if found is not None:
            self.notes.append(f"{path} is damaged; a new key was made, tags of older entries no longer compare")
        try:
            _replace(path, made)
        except OSError as error:
            raise JournalError(
                f"{path}: the key of redacted values cannot be kept: {error.strerror}", path=self.path
            ) from error
        return made


def open_directory(path: Path, engine_name: str, *, create: bool, read_only: bool) -> JournalDirectory:
    """Check the journal directory `path` and make it when `create` and it is not there.

    Raises JournalError for a wrong owner, mode or symbolic link and when it is not there,
    JournalUnsupported for another engine's or a newer format's journal, JournalCorrupt when it
    holds something that is not a journal.
    """
    create = create and not read_only
    if create:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(f"{path}: cannot make the journal directory: {error.strerror}", path=path) from error
    check_private(path)
    notes: list[str] = []
    meta = read_meta(path, notes)
    if meta is None:
        if not create:
            raise JournalError(f"{path}: there is no journal here", path=path)
        meta = _create(path, engine_name)
    if meta.format != FORMAT_VERSION:
        raise JournalUnsupported(_other_format(path, meta.format), path=path)
    if meta.engine != engine_name:
        text = (
            f"{path}: the journal was made by engine {meta.engine!r} and cannot be opened by {engine_name!r}; "
            f'set journal_backend = "{meta.engine}" or another journal_path'
        )
        raise JournalUnsupported(text, path=path)
    if not read_only:
        _repair(path, meta, notes)
    return JournalDirectory(path, meta, notes)


def check_private(path: Path) -> None:
    """Refuse a journal directory that others may reach. Raises JournalError."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise JournalError(f"{path}: there is no journal here", path=path) from None
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}", path=path) from error
    if stat.S_ISLNK(found.st_mode):
        raise JournalError(f"{path} is a symbolic link; name the real directory as the journal path", path=path)
    if not stat.S_ISDIR(found.st_mode):
        raise JournalError(f"{path} is not a directory", path=path)
    if found.st_uid != os.geteuid():
        text = f"{path} belongs to user {found.st_uid}, this process runs as {os.geteuid()}; a journal is its owner's"
        raise JournalError(text, path=path)
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        text = f"{path} has mode {mode:04o}; a journal holds what clients sent: run chmod 700 {path}"
        raise JournalError(text, path=path)


def read_meta(path: Path, notes: list[str]) -> Meta | None:
    """The journal's meta data from the first good copy; None when there has never been one.

    Raises JournalCorrupt when neither copy is good or the directory holds something else.
    """
    good: list[Meta] = []
    present = 0
    for name in _META_NAMES:
        raw = _read(path / name)
        if raw is None:
            continue
        present += 1
        try:
            meta = msgspec.json.decode(raw, type=Meta)
            int(meta.journal_id, 16)
        except (msgspec.DecodeError, ValueError):
            meta = None
        if meta is None or meta.sealed() != meta:
            _refuse_later_format(path, raw)
            notes.append(f"{path / name} is damaged; the other copy was used")
        else:
            good.append(meta)
    if not good and present:
        raise JournalCorrupt(f"{path}: both copies of meta.json are damaged; is this a journal?", path=path)
    if not good:
        # Drafts and empty directories are what an interrupted creation leaves behind.
        names = {entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")}
        strangers = names - {"secret", "engine", "quarantine"}
        engine = path / "engine"
        if strangers or (engine.is_dir() and any(engine.iterdir())):
            raise JournalCorrupt(f"{path} is not empty and not a journal: there is no meta.json", path=path)
        return None
    if any(meta != good[0] for meta in good):
        raise JournalCorrupt(f"{path}: meta.json and meta.json.bak are of different journals", path=path)
    return good[0]


def _refuse_later_format(path: Path, raw: bytes) -> None:
    """Raise JournalUnsupported when these bytes are whole and of a later format, with fields that are unknown here."""
    try:
        fields = msgspec.json.decode(raw, type=dict[str, Any])
    except msgspec.DecodeError:
        return
    check = crc32c(msgspec.json.encode(fields | {"check": 0}, order="sorted"))
    if fields.get("check") == check and fields.get("format") != FORMAT_VERSION:
        raise JournalUnsupported(_other_format(path, fields.get("format")), path=path)


def _other_format(path: Path, found: object) -> str:
    return f"{path}: the journal has format {found}, this version of Stellane reads format {FORMAT_VERSION}"


def _create(path: Path, engine_name: str) -> Meta:
    meta = Meta(
        format=FORMAT_VERSION,
        engine=engine_name,
        journal_id=f"{secrets.randbits(64):016x}",
        created_ns=time.time_ns(),
    ).sealed()
    try:
        draft = path / f"meta.json.{os.getpid()}.tmp"
        # In a container the process after a killed one has its pid, and meets its draft.
        draft.unlink(missing_ok=True)
        write_new(draft, msgspec.json.encode(meta))
        try:
            # A link, not a rename: of two processes that create at once, one must lose.
            os.link(draft, path / _META_NAMES[0])
        except FileExistsError:
            winner = read_meta(path, [])
            assert winner is not None
            meta = winner
        finally:
            draft.unlink()
        sync_directory(path)
    except OSError as error:
        raise JournalError(f"{path}: cannot make the journal: {error.strerror}", path=path) from error
    return meta


def _repair(path: Path, meta: Meta, notes: list[str]) -> None:
    """Put back what is missing or damaged: a copy of meta.json, the directories."""
    try:
        for name in ("engine", "quarantine"):
            (path / name).mkdir(mode=0o700, exist_ok=True)
            check_private(path / name)
        content = msgspec.json.encode(meta)
        for name in _META_NAMES:
            if _read(path / name) != content:
                _replace(path / name, content)
    except OSError as error:
        notes.append(f"{path}: the journal's second copy of meta.json could not be written: {error.strerror}")


def write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet, mode 0600, synced."""
    descriptor = os.open(path, _CREATE, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make new and removed names in `path` survive a power cut (fsync(2), NOTES)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    write_new(draft, content)
    draft.rename(path)
    sync_directory(path.parent)


def _read(path: Path) -> bytes | None:
    """The content of a small file, None when it is not there. Raises JournalError."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = "is a symbolic link" if error.errno == errno.ELOOP else str(error.strerror)
        raise JournalError(f"{path}: {reason}", path=path.parent) from error
    try:
        with os.fdopen(descriptor, "rb") as file:
            return file.read(META_BYTES_MAX)
    except OSError as error:
        raise JournalError(f"{path}: cannot be read: {error.strerror}", path=path.parent) from error
