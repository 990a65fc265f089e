"""CPython's own event-loop tests, run against one event loop.

python -m loop.tests.conformance --loop epoll                     the loop cases
python -m loop.tests.conformance --loop uvloop --suite package    all of test.test_asyncio, compared with asyncio's
python -m loop.tests.conformance --loop mine:new_event_loop --only 'SSL.*' --verbose

Run from the root of the repository, with the Python whose tests and loop are meant. Exit status: 0 when
nothing unexpected happened, 1 when something did, 2 when the tests could not be run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from loop.tests.conformance.expectations import exceptions, judge
from loop.tests.conformance.loops import LOOPS
from loop.tests.conformance.processes import TEST_TIMEOUT_S, Unrunnable
from loop.tests.conformance.report import remarks, table
from loop.tests.conformance.suites import CONTROL, compare_package, run_cases


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loop.tests.conformance", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--loop", required=True, help=f"{', '.join(LOOPS)}, or module:factory[?keyword=value]")
    parser.add_argument("--suite", choices=("cases", "package"), default="cases")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: 2)")
    parser.add_argument("--only", default="*", help="ids to run, as a shell pattern; exceptions are not judged then")
    parser.add_argument("--timeout-s", type=float, default=TEST_TIMEOUT_S, help="of one test")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    parser.add_argument("--verbose", action="store_true", help="whole tracebacks")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    loop, only = arguments.loop, arguments.only
    try:
        if arguments.suite == "cases":
            outcomes = judged = run_cases(loop, arguments.jobs, only, arguments.timeout_s)
        else:
            comparison = compare_package(loop, arguments.jobs, only, arguments.timeout_s)
            outcomes, judged = comparison.outcomes, comparison.only_here
            print(f"{CONTROL}:\n{table(comparison.control)}\n\n{loop}:")
    except Unrunnable as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps([outcome.as_json() for outcome in outcomes], indent=1))
    held = exceptions(arguments.suite, loop)
    print(table(outcomes))
    if arguments.suite == "package":
        print(f"\nnot passed on {loop}, passed on {CONTROL}: {len(judged)}")
    print(remarks(judged, held, verbose=arguments.verbose))
    judgement = judge(judged, held)
    if only != "*":
        return 1 if judgement.unexpected else 0
    print(judgement)
    return 0 if judgement.good else 1


if __name__ == "__main__":
    sys.exit(main())
