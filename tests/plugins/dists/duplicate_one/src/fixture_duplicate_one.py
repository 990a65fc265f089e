"""One of two backends of the same name. Importing either is a mistake, and leaves a mark."""

import builtins

builtins.fixture_duplicate_was_imported = True  # type: ignore[attr-defined]

stellane_api_level = 1
