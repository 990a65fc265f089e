"""What the author of a backend plugin imports: `from stellane.backend import LoopBackend, …`."""

from stellane.abc.backend import Backend, BackendStatistics, Capability, Priority, Probe
from stellane.builtin.loop_backend import LoopBackend
from stellane.hookspecs import hookimpl

__all__ = ["Backend", "BackendStatistics", "Capability", "LoopBackend", "Priority", "Probe", "hookimpl"]
