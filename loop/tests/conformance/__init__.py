"""CPython's own event-loop tests, run against any event loop. `python -m loop.tests.conformance --help`."""
