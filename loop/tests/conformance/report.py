"""The table of a run, for people."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from loop.tests.conformance.expectations import GOOD
from loop.tests.conformance.processes import Outcome

STATUSES = ("passed", "failed", "hung", "crashed", "skipped")


def table(outcomes: Sequence[Outcome]) -> str:
    """One row a group (the part of the id before the first dot), and a row of sums."""
    groups: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.test.split(".")[0], Counter())[outcome.status] += 1
    groups["all"] = sum(groups.values(), Counter())
    width = max(map(len, groups))
    lines = [f"{'':{width}}" + "".join(f"{status:>9}" for status in STATUSES)]
    for name, counts in groups.items():
        lines.append(f"{name:{width}}" + "".join(f"{counts[status] or '-':>9}" for status in STATUSES))
    return "\n".join(lines)


_RAISED = re.compile(r"^[\w.]*(Error|Exception|Exit|Interrupt|Warning|Cancelled)\b")


def _cause(outcome: Outcome) -> str:
    """The line that says most: what was raised; for a hang or a crash, where in the test; or else the last."""
    lines = [line.strip() for line in outcome.detail.splitlines() if line.strip()]
    raised = [line for line in lines if _RAISED.match(line)]
    starts = [number for number, line in enumerate(lines) if line.endswith("(most recent call first):")]
    stood = lines[starts[-1] + 1 :] if starts else []
    in_test = [line for line in stood if "test_asyncio" in line]
    if outcome.status in ("hung", "crashed"):
        raised = []
    return (raised[-1:] or in_test[:1] or stood[:1] or lines[-1:] or [""])[0][:160]


def remarks(outcomes: Sequence[Outcome], held: dict[str, str], *, verbose: bool = False) -> str:
    """What did not pass and why; then what passed only alone, and what was skipped."""
    lines: list[str] = []
    for outcome in outcomes:
        if outcome.status in GOOD and not outcome.unsteady and outcome.status != "skipped":
            continue
        status = "passed alone only" if outcome.unsteady else outcome.status
        reason = f" (listed: {held[outcome.test]})" if outcome.test in held else ""
        lines.append(f"{status:17} {outcome.test}{reason}: {_cause(outcome)}")
        if verbose:
            lines += [f"    {line}" for line in outcome.detail.splitlines()]
    return "\n".join(sorted(lines) if not verbose else lines)
