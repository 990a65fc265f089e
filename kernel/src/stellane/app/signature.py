"""What a function that a user registers must look like."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def qualified_name(function: Callable[..., Any]) -> str:
    """`module.function`, for messages."""
    name = getattr(function, "__qualname__", None)
    return f"{function.__module__}.{name}" if name else repr(function)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine: an `async def`, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(type(function), "__call__", None)  # noqa: B004 - the function itself is wanted
    )


def require_async(function: Any, what: str, *parameters: str) -> None:
    """Check that `function` is `async def` and can be called with `parameters`, by position.

    `what` begins the message of the TypeError raised otherwise.
    """
    wanted = f"write `async def {getattr(function, '__name__', 'handler')}({', '.join(parameters)})`"
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"{what}: {function!r} is not a function; {wanted}")
    name = qualified_name(function)
    if inspect.isasyncgenfunction(function):
        raise TypeError(
            f"{what}: {name} is an async generator (it has `yield` in it); {wanted} "
            "and return Response.stream(...) of the generator"
        )
    if not is_async(function):
        raise TypeError(f"{what}: {name} is not async; {wanted}")
    signature = inspect.signature(function)
    try:
        signature.bind(*parameters)
    except TypeError:
        raise TypeError(
            f"{what}: {name}{signature} cannot be called with ({', '.join(parameters)}); {wanted}"
        ) from None
