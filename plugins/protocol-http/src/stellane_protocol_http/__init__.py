"""HTTP/1.1 on any asyncio loop."""
