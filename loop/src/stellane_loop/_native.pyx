# cython: language_level=3, binding=False, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=True
"""The native part of the loop. One compilation unit, so that its parts call each other as C functions."""

import asyncio
import os
import socket
import sys
import threading
from asyncio import base_events, constants, events, format_helpers, selector_events, sslproto, transports, trsock
from asyncio.base_events import _format_handle
from asyncio.log import logger

from stellane_loop.lasting import LastingFuture
from stellane_loop.observation import LoopStatistics, SlowCallback
from stellane_loop.ready import NORMAL, priority

cimport cython

include "native/seam.pxi"
include "native/clock.pxi"
include "native/handles.pxi"
include "native/scheduling.pxi"
include "native/core.pxi"
include "native/sink.pxi"
include "native/watches.pxi"
include "native/addresses.pxi"
include "native/tls.pxi"
include "native/stream_writing.pxi"
include "native/stream_reader.pxi"
include "native/stream_receiving.pxi"
include "native/streams.pxi"
include "native/listeners.pxi"
include "native/socket_operations.pxi"
include "native/datagrams.pxi"
include "native/files.pxi"
include "native/turns.pxi"
include "native/adaptive.pxi"
include "native/probe.pxi"
include "native/entry.pxi"

# The last of the native bases: those before it copied what they inherit when they were made.
stl_traverse_held(<void *>NativeLoop, held_by)
