"""STELLANE_TRACE_HOOKS=1: every hook call, who answers it and with what, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pluggy


def trace_hooks(manager: pluggy.PluginManager) -> None:
    """Print one line before and one after each hook call of `manager`."""

    def before(hook: str, methods: Sequence[pluggy.HookImpl], arguments: Mapping[str, Any]) -> None:
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        # pluggy calls the last registered one first
        who = ", ".join(method.plugin_name for method in reversed(methods)) or "nobody"
        print(f"hook {hook}({given}) -> {who}", file=sys.stderr)

    def after(
        outcome: pluggy.Result[Any], hook: str, _methods: Sequence[pluggy.HookImpl], _arguments: Mapping[str, Any]
    ) -> None:
        error = outcome.exception
        said = f"{type(error).__name__}: {error}" if error is not None else repr(outcome.get_result())
        print(f"hook {hook} = {said}", file=sys.stderr)

    manager.add_hookcall_monitoring(before, after)
