"""A first-in-first-out scheduler with a bound of its own."""

from typing import Annotated

import msgspec

from stellane.abc import Scheduler
from stellane.builtin.fifo_scheduler import FifoScheduler
from stellane.hookspecs import hookimpl

stellane_api_level = 1


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """[scheduler.short]: `waiting_max` bounds the queue below runtime.max_tasks_per_loop."""

    waiting_max: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10


stellane_options = Options


@hookimpl
def stellane_create_scheduler(options: Options, capacity: int) -> Scheduler:
    """A scheduler of the smaller of the two bounds."""
    return FifoScheduler(min(capacity, options.waiting_max))
