"""What a process must let go of in a child that it forks, such as multiprocessing's.

A forked child has every descriptor of its parent, close-on-exec or not, and a lock of flock(2)
belongs to the open file that both share: it lasts until the last of them has closed it. A child
that outlives a killed parent would keep the next one out.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable

_calls: list[weakref.WeakMethod[Callable[[], None]]] = []


def call_in_forked_child(method: Callable[[], None]) -> None:
    """Call the bound method `method` in every child forked from now on, while its object lives.

    It may close descriptors and no more. Unlocking would unlock the parent's file as well, and
    threads of the parent do not run in the child and cannot be waited for. OSError is passed over.
    """
    # Swept here and not by a callback of the reference, which would still come while Python ends.
    _calls[:] = [known for known in _calls if known() is not None]
    _calls.append(weakref.WeakMethod(method))


def _call_all() -> None:
    for reference in _calls:
        method = reference()
        if method is not None:
            with contextlib.suppress(OSError):
                method()


os.register_at_fork(after_in_child=_call_all)
