"""A backend that needs a library which is not there."""

import library_that_nobody_installed  # noqa: F401

stellane_api_level = 1
