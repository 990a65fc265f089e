"""The contracts between the kernel and its plugins, one file a kind."""

from stellane.abc.backend import Backend, BackendStatistics, Capability, Priority, Probe
from stellane.abc.extension import Extension
from stellane.abc.journal import Durability, EngineCapabilities, EngineStatistics, Gap, JournalEngine
from stellane.abc.protocol import Exchange, Protocol, ProtocolStatistics
from stellane.abc.recovery import Decision, EntryState, PendingRequest, Plan, RecoveryPolicy, Step
from stellane.abc.scheduler import Entry, Scheduler, SchedulerStatistics

__all__ = [
    "Backend",
    "BackendStatistics",
    "Capability",
    "Decision",
    "Durability",
    "EngineCapabilities",
    "EngineStatistics",
    "Entry",
    "EntryState",
    "Exchange",
    "Extension",
    "Gap",
    "JournalEngine",
    "PendingRequest",
    "Plan",
    "Priority",
    "Probe",
    "Protocol",
    "ProtocolStatistics",
    "RecoveryPolicy",
    "Scheduler",
    "SchedulerStatistics",
    "Step",
]
