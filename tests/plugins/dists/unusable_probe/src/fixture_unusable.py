"""A backend that cannot run here: its probe really looks for the device it needs."""

from pathlib import Path
from typing import Any

from stellane.abc import Probe
from stellane.hookspecs import hookimpl

stellane_api_level = 1

DEVICE = Path("/dev/stellane-fixture")


@hookimpl
def stellane_probe() -> Probe:
    """Open the device."""
    try:
        DEVICE.open("rb").close()
    except OSError as error:
        return Probe(usable=False, reason=f"{DEVICE}: {error.strerror}", remedy="modprobe stellane_fixture")
    return Probe(usable=True)


@hookimpl
def stellane_create_backend(options: Any) -> Any:
    """Never called."""
    raise AssertionError("a plugin whose probe says it cannot run was used")
