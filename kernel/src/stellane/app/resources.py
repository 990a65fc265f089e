"""What one worker shares between its requests: a database pool, an HTTP client."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from stellane.errors import StellaneError
from stellane.logging import get_logger
from stellane.nearest import did_you_mean

ResourceFactory = Callable[..., AsyncIterator[Any] | AbstractAsyncContextManager[Any]]

_log = get_logger("stellane.app")


class ResourceError(StellaneError):
    """A resource could not be opened or closed; the cause is chained."""


class Resources:
    """The open resources of a worker: `resources.db`, or `resources.get("db")`."""

    def get(self, name: str) -> Any:
        """The resource of that name. Raises LookupError when there is none."""
        try:
            return self.__dict__[name]
        except KeyError:
            known = ", ".join(self.__dict__) or "none"
            raise LookupError(
                f"no open resource is called {name!r}; open are: {known}.{did_you_mean(name, self.__dict__)}"
            ) from None

    def __getattr__(self, name: str) -> Any:
        try:
            return self.get(name)
        except LookupError as error:
            raise AttributeError(str(error)) from None


class ResourceStack:
    """Opens resources in the order they were registered, and closes them in reverse."""

    def __init__(self) -> None:
        self.resources = Resources()
        self._factories: dict[str, ResourceFactory] = {}
        self._open: list[tuple[str, AbstractAsyncContextManager[Any]]] = []

    def register(self, name: str, factory: ResourceFactory) -> None:
        """Take `factory`: an async generator function that yields once, or a function that returns
        an async context manager. It may take one parameter, the resources opened before it.

        Raises TypeError or ValueError that says what is wrong.
        """
        if not name.isidentifier() or hasattr(Resources, name):
            raise ValueError(f"resource {name!r}: the name becomes an attribute of ctx.resources, and cannot be that")
        if name in self._factories:
            raise ValueError(f"resource {name!r} is registered twice")
        if not callable(factory) or inspect.iscoroutinefunction(factory):
            raise TypeError(
                f"resource {name!r} is made by an async generator function that yields it once, or by a function "
                f"that returns an async context manager, not by {factory!r}"
            )
        if _parameters(factory) > 1:
            raise TypeError(f"resource {name!r}: its function takes nothing, or the resources opened before it")
        self._factories[name] = factory

    async def open(self) -> None:
        """Open all. When one fails, those already open are closed. Raises ResourceError."""
        for name, factory in self._factories.items():
            try:
                manager = _manager(factory, self.resources)
                value = await manager.__aenter__()
            except BaseException as error:
                await self._close_quietly()
                if not isinstance(error, Exception):
                    raise
                raise ResourceError(f"resource {name!r} did not open: {type(error).__name__}: {error}") from error
            self._open.append((name, manager))
            setattr(self.resources, name, value)

    async def close(self) -> None:
        """Close all that are open, whatever fails. Then raises ResourceError if something failed."""
        failed: list[tuple[str, Exception]] = []
        while self._open:
            name, manager = self._open.pop()
            try:
                await manager.__aexit__(None, None, None)
            except Exception as error:
                _log.error("resource did not close", resource=name, exc_info=error)
                failed.append((name, error))
            delattr(self.resources, name)
        if failed:
            names = ", ".join(repr(name) for name, _ in failed)
            first = failed[0][1]
            raise ResourceError(f"resource {names} did not close: {type(first).__name__}: {first}") from first

    async def _close_quietly(self) -> None:
        with contextlib.suppress(ResourceError):  # logged by close; why the start failed matters more
            await self.close()


def _manager(factory: ResourceFactory, resources: Resources) -> AbstractAsyncContextManager[Any]:
    arguments = (resources,) if _parameters(factory) else ()
    if inspect.isasyncgenfunction(factory):
        return contextlib.asynccontextmanager(factory)(*arguments)
    manager = factory(*arguments)
    if not hasattr(manager, "__aenter__") or not hasattr(manager, "__aexit__"):
        raise TypeError(f"its function returned {type(manager).__name__}, which is not an async context manager")
    return manager  # type: ignore[return-value]


def _parameters(factory: ResourceFactory) -> int:
    """How many arguments it must be given."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a builtin without a signature
        return 0
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(1 for p in parameters if p.kind in positional and p.default is p.empty)
