"""LibUVBackend: the libuv event loop, through uvloop."""
