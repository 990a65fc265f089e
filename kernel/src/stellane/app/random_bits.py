"""Random numbers for ids: unique, cheap, never for secrets."""

from __future__ import annotations

import os
import random

# Not the random module's own generator: an application that seeds that one, to repeat a test,
# would give every worker the same ids.
_generator = random.Random()  # noqa: S311 - ids, not secrets
# Not at import only: forked workers would go on from the same state.
os.register_at_fork(after_in_child=_generator.seed)

random_bits = _generator.getrandbits
"""An int of that many random bits. Ten times cheaper than os.urandom."""
