"""What the spine runs: a native Server or an ASGI app behind one small interface."""

from __future__ import annotations

import abc
from typing import Any

from stellane.abc import Exchange
from stellane.config import Config
from stellane.recovery.context import Attempt, RecoveryContext


class Application(abc.ABC):
    """An application in one worker. Every method runs on the worker's loop."""

    kind: str
    """"native" or "asgi", for the banner."""

    @abc.abstractmethod
    def configure(self, config: Config) -> None:
        """Take what concerns the application from the configuration; before `startup`."""

    @abc.abstractmethod
    async def startup(self) -> None:
        """Open resources or run the ASGI lifespan start-up. Raising ends the worker."""

    @abc.abstractmethod
    async def shutdown(self) -> None:
        """Close what `startup` opened, in reverse order; runs even when requests were cancelled."""

    @abc.abstractmethod
    async def handle(self, exchange: Exchange) -> None:
        """Answer one request, completely. Whatever the application raises becomes its 500."""

    @abc.abstractmethod
    async def recover(self, exchange: Exchange, recovery: RecoveryContext) -> None:
        """Answer a request whose worker died: through the recovery hook, else like `handle`.

        Raises what the hook or handler raised (Retry, DeadLetter and Skip among it): an error
        here is a failed attempt, not a 500.
        """

    @abc.abstractmethod
    async def dead_letter(self, exchange: Exchange, attempts: list[Attempt]) -> None:
        """Tell the application that a request was given up, if it asked to know."""

    @abc.abstractmethod
    def journal_wish(self, method: str, path: bytes) -> bool | None:
        """Whether the route wants its requests journaled; None leaves it to the policy."""

    @abc.abstractmethod
    def has_recovery_hook(self, method: str, path: bytes) -> bool:
        """Whether a recovery hook covers this request."""

    def recovery_defaults(self) -> dict[str, Any]:
        """[recovery] keys the application sets itself; file, environment and command line win."""
        return {}
