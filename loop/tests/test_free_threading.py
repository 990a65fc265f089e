"""On an interpreter without the lock the loop leaves it off and loses no call; not run on others."""

from __future__ import annotations

import sys
import sysconfig

import pytest

import stellane_loop


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="not run: the interpreter has its lock")
def test_the_lock_stays_off(loop: stellane_loop.Loop):
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not sys._is_gil_enabled()
