"""Opening RocksDB: our options, and its bare exceptions told apart by their text."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from rocksdict import AccessType, DBRecoveryMode, Options, Rdict

from stellane.errors import JournalCorrupt, JournalError, JournalLocked, JournalPoisoned

READER_TRIES_MAX = 5
"""How often a reader tries again because a writer replaced a file while it opened."""
INFO_LOG_BYTES_MAX = 1_048_576


def error_text(error: BaseException) -> str:
    """One line of what RocksDB said."""
    return " ".join(str(error).split()) or type(error).__name__


def reading_failed(error: BaseException) -> bool:
    """Whether RocksDB did not get to see the bytes: what it wanted to read may be whole."""
    text = error_text(error)
    return "IO error" in text and ("Input/output error" in text or "Too many open files" in text)


def is_ours_to_handle(error: BaseException) -> bool:
    """Whether `error` came from the database: a bare Exception, or a panic of the binding."""
    return not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError)


def options(write_buffer_bytes: int, mode: DBRecoveryMode, *, create: bool) -> Options:
    """The options of one journal database."""
    chosen = Options(raw_mode=True)
    chosen.create_if_missing(create)
    chosen.set_wal_recovery_mode(mode)
    chosen.set_paranoid_checks(True)
    chosen.set_write_buffer_size(write_buffer_bytes)
    chosen.set_keep_log_file_num(2)
    chosen.set_max_log_file_size(INFO_LOG_BYTES_MAX)
    return chosen


def open_writer(path: Path, write_buffer_bytes: int, *, create: bool, keep_damaged: Path) -> tuple[Rdict, str]:
    """Open for writing; the database, and what was wrong with its log ("" when nothing was).

    A torn end of the log is what a crash leaves and is dropped. Any other damage makes RocksDB
    refuse; then the log files are copied into the new directory `keep_damaged` and the database
    is opened without the damaged parts, so that what is missing can be named by its keys.
    Raises JournalLocked, JournalError, JournalCorrupt.
    """
    tolerant = DBRecoveryMode.tolerate_corrupted_tail_records()
    try:
        return Rdict(str(path), options(write_buffer_bytes, tolerant, create=create)), ""
    except BaseException as error:
        refusal = _translate(error, path)
        if not isinstance(refusal, JournalCorrupt):
            raise refusal from error
        damage = error_text(error)
    _keep_logs(path, keep_damaged)
    try:
        skipping = DBRecoveryMode.skip_any_corrupted_record()
        return Rdict(str(path), options(write_buffer_bytes, skipping, create=False)), damage
    except BaseException as error:
        # The copy is of no use while the journal cannot be opened: nothing was changed.
        shutil.rmtree(keep_damaged, ignore_errors=True)
        raise _translate(error, path) from error


def open_reader(path: Path, write_buffer_bytes: int, private: Path) -> tuple[Rdict, str]:
    """Open as a secondary instance, which may follow a writer; nothing in `path` is changed.

    `private` is an empty directory for its information log. Otherwise as `open_writer`.
    """
    tolerant = DBRecoveryMode.tolerate_corrupted_tail_records()
    for attempt in range(1, READER_TRIES_MAX + 1):
        try:
            chosen = options(write_buffer_bytes, tolerant, create=False)
            # A secondary instance keeps every table open, since the writer may delete it.
            chosen.set_max_open_files(-1)
            return Rdict(str(path), chosen, access_type=AccessType.secondary(str(private))), ""
        except BaseException as error:
            refusal = _translate(error, path)
            if isinstance(refusal, JournalCorrupt) and "Corruption" in error_text(error):
                return _open_damaged_reader(path, write_buffer_bytes, private), error_text(error)
            if attempt == READER_TRIES_MAX:
                raise refusal from error
            time.sleep(0.01 * attempt)
    raise JournalError(f"{path}: cannot be opened for reading", path=path)


def _open_damaged_reader(path: Path, write_buffer_bytes: int, private: Path) -> Rdict:
    """Open without the damaged parts; a secondary instance cannot, so this one follows nobody."""
    chosen = options(write_buffer_bytes, DBRecoveryMode.skip_any_corrupted_record(), create=False)
    chosen.set_db_log_dir(str(private))
    try:
        return Rdict(str(path), chosen, access_type=AccessType.read_only(False))
    except BaseException as error:
        raise _translate(error, path) from error


def catch_up(database: Rdict, path: Path) -> None:
    """Bring a reader up to date. Raises JournalCorrupt or another JournalError."""
    try:
        database.try_catch_up_with_primary()
    except BaseException as error:
        raise _translate(error, path) from error


def poisoned(what: str, error: BaseException, path: Path) -> JournalPoisoned:
    """The error for a failed write or sync."""
    return JournalPoisoned(f"{path}: {what} failed: {error_text(error)}", path=path)


def _translate(error: BaseException, path: Path) -> BaseException:
    if not is_ours_to_handle(error):
        return error
    text = error_text(error)
    if "lock" in text and ("Resource temporarily unavailable" in text or "No locks available" in text):
        return JournalLocked(
            f"{path}: another process writes to this journal; stop it or use another journal_path", path=path
        )
    if "does not exist (create_if_missing is false)" in text:
        return JournalError(f"{path}: there is no journal here", path=path)
    # Not damage when reading failed: to skip the "damaged" parts would lose what may be whole.
    if (
        reading_failed(error)
        or "Permission denied" in text
        or "No space left" in text
        or "Read-only file system" in text
    ):
        return JournalError(f"{path}: {text}", path=path)
    return JournalCorrupt(f"{path}: RocksDB cannot open its files: {text}", path=path)


def _keep_logs(path: Path, target: Path) -> None:
    try:
        target.mkdir(mode=0o700)
        for log in path.glob("*.log"):
            shutil.copyfile(log, target / log.name)
    except OSError as error:
        text = f"{target}: cannot keep a copy of the damaged log: {error.strerror}; free space and start again"
        raise JournalError(text, path=path) from error
