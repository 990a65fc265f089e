"""The order of the ready queue, for those who want another than first in, first out."""

import contextvars

NORMAL = 0

priority: contextvars.ContextVar[int] = contextvars.ContextVar("stellane_loop.priority")
"""The priority of what is scheduled from this context; a lower number is more urgent. Unset: NORMAL."""
