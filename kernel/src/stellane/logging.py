"""Logs: structlog to standard error, one line an event, stdlib logging in the same format.

`get_logger` returns a structlog logger over the stdlib logger of that name. It is bound to our
own processors, so an application that configures structlog or logging for itself disturbs
nothing here.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO, cast

import structlog
from structlog.typing import Processor

_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
_OWN: list[Processor] = [
    structlog.stdlib.filter_by_level,
    *_SHARED,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.StackInfoRenderer(),
    structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
]


class _Handler(logging.StreamHandler[TextIO]):
    """Ours among the root logger's handlers, so that a second `configure` replaces it alone."""


def configure(level: str, format: str, *, stream: TextIO | None = None) -> None:  # noqa: A002 - the key's name
    """Send every log event of this process to `stream` (standard error) at `level` and above.

    `level` and `format` are the values of server.log_level and server.log_format; "auto" is
    "console" on a terminal and "json" otherwise. May be called again.
    """
    out = sys.stderr if stream is None else stream
    terminal = out.isatty()
    handler = _Handler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderer("console" if format == "console" or (format == "auto" and terminal) else "json", terminal),
            ],
        )
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    structlog.configure(
        processors=_OWN,
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get_logger(name: str, **bound: Any) -> structlog.stdlib.BoundLogger:
    """A logger with `bound` in each of its events, beside what contextvars hold."""
    logger = structlog.wrap_logger(
        logging.getLogger(name), processors=_OWN, wrapper_class=structlog.stdlib.BoundLogger, **bound
    )
    return cast("structlog.stdlib.BoundLogger", logger.bind())


def _renderer(format: str, colors: bool) -> list[Processor]:  # noqa: A002 - as in `configure`
    if format == "console":
        # The default tracebacks of structlog print local variables: secrets of a request among them.
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)]
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
