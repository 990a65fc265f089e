"""Every exception of the runtime, in one file.

The application layer adds its own beside what they are about: HTTPError (`app.http_error`),
RequestTimeoutError, ResourceError, LifespanError and ASGIDisconnectedError, all StellaneErrors.

StellaneError
├── ConfigError                  a setting is wrong: file, key path, value, what is allowed
├── TargetError                  `stellane run TARGET` names nothing that can be served
├── PluginError                  kind, name
│   ├── PluginNotFound           nothing installed under that name (also a LookupError)
│   ├── PluginConflict           more than one distribution claims it
│   ├── PluginLoadError          it failed to import
│   ├── PluginIncompatible       wrong API level, or hooks that do not fit
│   └── PluginUnusable           its probe says it cannot run here
├── QueueFull                    a scheduler is at its bound
├── ClientDisconnected           the peer went away while we read or wrote
├── BodyTooLarge                 the request body passed `limits.body_bytes_max`
├── BodyNotJournaled             a recovered request whose body was too large to journal
├── LocalProtocolError           the application broke the protocol (our side)
├── RemoteProtocolError          the peer broke the protocol; carries the status to answer
├── JournalError                 path
│   ├── JournalLocked            another process has it open
│   ├── JournalCorrupt           an acknowledged record is gone or damaged
│   ├── JournalFull              no space for a new record
│   ├── JournalPoisoned          a write or sync failed; the journal refuses work for good
│   └── JournalUnsupported       the engine or the file system cannot do what was asked
└── StellaneInternalError        a bug of ours: please report it

Retry, DeadLetter and Skip are not errors but outcomes a recovery hook raises.
"""

from __future__ import annotations

from pathlib import Path


class StellaneError(Exception):
    """Base of every exception Stellane raises."""


class ConfigError(StellaneError):
    """A setting is unknown, of the wrong type, out of range or not built yet."""


class TargetError(StellaneError):
    """The run target cannot be imported or is not an application."""


class PluginError(StellaneError):
    """A plugin could not be found, loaded or used.

    `kind` is one of the six plugin kinds, `name` the word from the config.
    """

    def __init__(self, message: str, *, kind: str, name: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.name = name


class PluginNotFound(PluginError, LookupError):
    """No installed distribution provides this plugin."""


class PluginConflict(PluginError):
    """More than one distribution provides this plugin, or more than one answered a create hook."""


class PluginLoadError(PluginError):
    """The plugin raised while it was imported; the cause is chained."""


class PluginIncompatible(PluginError):
    """The plugin was written for another API level or does not match the hookspecs."""


class PluginUnusable(PluginError):
    """The plugin's probe reports that it cannot run on this machine."""


class QueueFull(StellaneError):
    """A scheduler already holds as many entries as it may."""


class ClientDisconnected(StellaneError):
    """The client closed the connection before the exchange ended."""


class BodyTooLarge(StellaneError):
    """The request body is larger than `limits.body_bytes_max`."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"request body is larger than limits.body_bytes_max = {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class BodyNotJournaled(StellaneError):
    """The body of a recovered request was too large to be journaled and is gone."""


class LocalProtocolError(StellaneError):
    """The application used the response side in a way that cannot become valid HTTP."""


class RemoteProtocolError(StellaneError):
    """The client sent something that is not valid HTTP or is over a limit.

    `status` is the HTTP status code to answer with before closing (RFC 9110 section 15.5).
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class JournalError(StellaneError):
    """A journal cannot do what was asked. `path` is the journal's directory."""

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path


class JournalLocked(JournalError):
    """Another process holds the journal's lock."""


class JournalCorrupt(JournalError):
    """The journal is damaged where it had been acknowledged, or is not a journal at all."""


class JournalFull(JournalError):
    """There is no space left for the record; nothing of it was kept."""


class JournalPoisoned(JournalError):
    """A write or sync failed once. What the disk holds is unknown, so nothing more is accepted."""


class JournalUnsupported(JournalError):
    """The engine, or the file system under it, cannot offer the requested durability or version."""


class StellaneInternalError(StellaneError):
    """This should never happen. If you see it, please file a bug with the traceback."""


class RecoveryOutcome(Exception):
    """Base of what a recovery hook may raise to decide a request's fate."""


class Retry(RecoveryOutcome):
    """Try again later, as one more attempt. `after_s` is the delay in seconds."""

    def __init__(self, after_s: float = 1.0) -> None:
        super().__init__(f"retry after {after_s} s")
        self.after_s = after_s


class DeadLetter(RecoveryOutcome):
    """Give up on this request and keep it where a person can see it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Skip(RecoveryOutcome):
    """Leave this request as a visible orphan; it is not run and not lost."""

    def __init__(self, reason: str = "skipped by the recovery hook") -> None:
        super().__init__(reason)
        self.reason = reason
