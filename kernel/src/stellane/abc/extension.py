"""The extension contract: a cross-cutting plugin that listens and never decides.

An extension is any module or object with hook implementations of the worker and request
groups of `stellane.hookspecs`. This class is a place to hang them; it asks for nothing. What an
extension holds it releases in `stellane_worker_stopped`, which is the last thing it hears.
"""

from __future__ import annotations


class Extension:
    """Base of an extension that is written as a class."""
