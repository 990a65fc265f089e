"""Event loops under the same programs: `python -m bench.loops`. See README.md."""
