"""Every key of stellane.config.toml, its type, default, unit and range.

The structures are frozen: a running worker never changes its configuration. A key that the
specification names but whose feature does not exist yet is listed here too, marked with
`not_built`: setting it to anything but the value that means "off" is refused.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

COUNT_MAX = 2**31 - 1
"""The largest count, or size in bytes of a thing held in memory, that a key takes."""

SECONDS_MAX = 31_536_000
"""The longest time a key takes, one year: event loops cannot wait for much longer."""

WORKERS_MAX = 1024

PositiveInt = Annotated[int, Meta(ge=1, le=COUNT_MAX)]
NaturalInt = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
StreamBytes = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PositiveSeconds = Annotated[float, Meta(gt=0, le=SECONDS_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=SECONDS_MAX)]
Port = Annotated[int, Meta(ge=0, le=65535)]

# RFC 9110 section 5.6.2; a method is compared as it stands, so a lower case one would match nothing
Method = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Z-]+\Z", description="a method name in upper case")]
FieldName = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z", description="a header field name")]
FieldValue = Annotated[
    str,
    Meta(
        pattern=r"^([!-~]([ -~]*[!-~])?)?\Z",
        description="a header field value: visible ASCII characters, with spaces between them only",
    ),
]
PathPrefix = Annotated[
    str,
    Meta(pattern=r"^(/[^\s?#]*[^\s?#/])?\Z", description='"" or a path that begins with "/" and does not end with it'),
]


def not_built(off: Any) -> Meta:
    """Mark a key whose feature does not exist yet; `off` is the only value accepted."""
    return Meta(extra={"not_built": True, "off": off})


def choices(built: tuple[str, ...], later: tuple[str, ...] = ()) -> Meta:
    """Mark a key with a closed set of words; those in `later` are refused as not built yet."""
    return Meta(extra={"choices": built, "later": later})


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[runtime]: what runs, and how much of it at once."""

    backend: str = "auto"
    """An installed backend's name, or "auto"."""
    scheduler: str = "fifo"
    protocol: str = "http"
    extensions: tuple[str, ...] = ()
    """Extensions to load, in order."""
    worker_threads: Annotated[int, Meta(ge=1, le=WORKERS_MAX)] = 1
    """Workers; each is one event loop (a process on ordinary CPython)."""
    worker_model: Annotated[str, choices(("auto", "process"), ("thread",))] = "auto"
    max_tasks_per_loop: PositiveInt = 1000
    """Requests running at once in one worker, and as many again waiting; then 503."""
    max_connections: PositiveInt = 10_000
    """Open client connections in one worker; further ones are answered 503 and closed."""
    enable_cpu_affinity: bool = False
    """Pin worker i to the i-th CPU this process may use."""
    dispatch: Annotated[str, choices(("auto", "shared", "reuseport", "round_robin", "least_loaded", "affinity"))] = (
        "auto"
    )
    """Which worker serves a new connection. "auto" is "shared": whoever is first to accept it, which is
    cheapest and goes round a busy worker, but can leave a few long connections all on one. "reuseport":
    the kernel, by a hash of both addresses over a listener for each worker. The others hand an accepted
    connection to the right worker before it is read: "least_loaded", the one with the fewest open
    connections; "round_robin", each in turn; "affinity", the same one for all connections of a client's
    address, as the server sees it. With server.uds neither "reuseport" nor "affinity"."""
    restart_delay_s: Seconds = 0.1
    """Delay before a worker that died young is started again; doubles each time."""
    restart_delay_s_max: PositiveSeconds = 30.0
    restart_reset_s: Seconds = 10.0
    """A worker that lived this long is restarted at once, and its delay starts over."""
    hang_timeout_s: Seconds = 30.0
    """A worker whose loop has not turned for this long is killed and replaced: a handler that blocks it stops every
    request of that worker. As long as gunicorn waits, longer than what blocks by mistake. 0 means never."""
    start_timeout_s: Seconds = 300.0
    """A worker that is not ready after this long is killed and started again; models and migrations take their
    time. 0 means never."""


class RecoveryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[recovery]: the request journal and what happens after a crash."""

    enabled: bool = False
    journal_backend: str = "file"
    """An installed journal engine's name."""
    journal_path: str = ".stellane/journal"
    """Directory, relative to the working directory."""
    durability: Annotated[str, choices(("none", "process"), ("power",))] = "process"
    policy: str = "replay"
    """An installed recovery policy's name."""
    methods: tuple[Method, ...] = ("POST", "PUT", "PATCH", "DELETE")
    """Methods journaled when a route does not say."""
    max_recovery_attempts: NaturalInt = 3
    """Replays of one request before it becomes a dead letter; 0 never replays."""
    attempt_timeout_s: PositiveSeconds = 30.0
    concurrency: PositiveInt = 4
    """Replays running at once in one worker."""
    body_bytes_max: NaturalInt = 1_048_576
    """A larger body is not journaled: its request becomes an orphan after a crash."""
    snapshot_bytes: Annotated[int, Meta(ge=65_536, le=COUNT_MAX)] = 16_777_216
    """Journal bytes after which the live requests are written anew and older records released."""
    redact_headers: tuple[FieldName, ...] = ()
    """Header names kept out of the journal, besides the built-in ones."""


class PerformanceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[performance]: placement and I/O tuning."""

    enable_cpu_affinity: bool = False
    """The same as runtime.enable_cpu_affinity; either one turns it on."""
    numa_aware: Annotated[bool, not_built(False)] = False
    zero_copy_io: Annotated[bool, not_built(False)] = False
    adaptive_polling: bool = False
    """Look for events before sleeping, while most waits are shorter than two wake-ups and the CPU
    would idle otherwise; with one CPU never. Timing a wake-up takes a worker 20 ms when it starts.
    For backends with the capability adaptive-polling; others refuse it."""
    poll_spin_us_max: Annotated[int, Meta(ge=1, le=10_000)] = 50
    """The longest such look, microseconds."""
    batch_wait_us_max: Annotated[int, Meta(ge=0, le=10_000)] = 0
    """Under load, wait up to this long for several completions at once, microseconds; 0 means do
    not. For backends with the capability batching; others refuse it."""
    ready_order: Annotated[str, choices(("fifo", "priority"))] = "fifo"
    """Which callback runs first: the oldest, or the one whose task was scheduled as most urgent, and
    now and then the oldest all the same, so that none starves. "priority" is for backends with the
    capability own-ready-queue; others refuse it."""
    turn_budget_us: Annotated[int, Meta(ge=1, le=1_000_000)] = 500
    """With ready_order = "priority": after this long in callbacks the loop looks for events, so that
    what is urgent and new can overtake, microseconds."""


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[http]: the wire protocol."""

    codec: Annotated[str, choices(("auto", "zttp", "h11"))] = "auto"
    """HTTP/1.1 parser."""
    keep_alive_s: PositiveSeconds = 75.0
    """An idle connection is closed after this."""
    head_timeout_s: PositiveSeconds = 10.0
    """A request head must be complete this long after its first byte, or 408."""
    body_timeout_s: PositiveSeconds = 30.0
    """A request body must make progress at least this often, or 408."""
    write_timeout_s: PositiveSeconds = 30.0
    """A client must take some of the response at least this often, or it is cut off."""
    server_header: FieldValue = "stellane"
    """Value of the Server field; "" leaves it out."""
    date_header: bool = True
    root_path: PathPrefix = ""
    """ASGI root_path: the prefix a proxy has removed."""


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[limits]: how large and how long a request may be."""

    request_line_bytes_max: Annotated[int, Meta(ge=64, le=32_768)] = 8190
    """Longer: 414."""
    header_bytes_max: Annotated[int, Meta(ge=256, le=49_152)] = 32_768
    """All header fields together; larger: 431."""
    header_fields_max: Annotated[int, Meta(ge=1, le=1000)] = 100
    """More: 431."""
    body_bytes_max: StreamBytes = 104_857_600
    """Larger: 413, before reading when Content-Length tells. 0 means no limit."""
    request_timeout_s: Seconds = 0.0
    """A handler that has not answered in time is cancelled and 504 is sent. 0 means no limit."""


class ShutdownConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[shutdown]: how a worker stops."""

    drain_delay_s: Seconds = 0.0
    """Keep accepting this long after SIGTERM, for load balancers to notice."""
    graceful_timeout_s: Seconds = 10.0
    """In-flight requests may finish this long; then they are cancelled."""
    hard_timeout_s: PositiveSeconds = 5.0
    """After the cancellation a worker has this long; then it is killed."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """[server]: where to listen, and what to say."""

    host: str = "127.0.0.1"
    port: Port = 8000
    uds: str = ""
    """A unix socket's path; when set, host and port are not used."""
    backlog: PositiveInt = 2048
    log_level: Annotated[str, choices(("debug", "info", "warning", "error", "critical"))] = "info"
    log_format: Annotated[str, choices(("auto", "console", "json"))] = "auto"
    access_log: Annotated[bool, not_built(False)] = False


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of stellane.config.toml."""

    server: ServerConfig = ServerConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    performance: PerformanceConfig = PerformanceConfig()
    http: HttpConfig = HttpConfig()
    limits: LimitsConfig = LimitsConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    backend: dict[str, dict[str, Any]] = {}
    """[backend.<name>]: options of a backend plugin, validated by its `stellane_options`."""
    scheduler: dict[str, dict[str, Any]] = {}
    journal: dict[str, dict[str, Any]] = {}
    policy: dict[str, dict[str, Any]] = {}
    protocol: dict[str, dict[str, Any]] = {}
    extension: dict[str, dict[str, Any]] = {}
