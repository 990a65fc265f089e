"""The extension contract: a cross-cutting plugin that listens and never decides.

An extension is any object with hook implementations of the worker and request groups of
`stellane.hookspecs`. This class is a convenience: subclass it and override what you need.
"""

from __future__ import annotations


class Extension:
    """Base of an extension. `close` runs when the worker stops, after `stellane_worker_stopped`."""

    def close(self) -> None:
        """Release what the extension holds. Idempotent."""
        return
