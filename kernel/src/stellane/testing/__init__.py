"""Conformance suites for plugin authors, and broken plugins that prove them."""
