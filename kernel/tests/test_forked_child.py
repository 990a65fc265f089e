"""What is called in a forked child: the methods of objects that live, each for itself."""

from __future__ import annotations

import gc

from stellane.recovery import forked_child


class Held:
    """Has something to let go of."""

    def __init__(self, calls: list[str], name: str) -> None:
        self.calls = calls
        self.name = name

    def let_go(self) -> None:
        """Note it; the one named "gone" has no descriptor any more."""
        self.calls.append(self.name)
        if self.name == "gone":
            raise OSError(9, "Bad file descriptor")


def test_each_living_object_is_called_whatever_the_others_do() -> None:
    """Registering keeps nothing alive."""
    calls: list[str] = []
    held = [Held(calls, name) for name in ("gone", "one", "gone", "two")]
    for each in held:
        forked_child.call_in_forked_child(each.let_go)
    forked_child._call_all()
    assert sorted(calls) == ["gone", "gone", "one", "two"]
    known = len(forked_child._calls)
    del held[1:], each
    gc.collect()
    forked_child.call_in_forked_child(Held(calls, "three").let_go)
    assert len(forked_child._calls) <= known - 3 + 1
