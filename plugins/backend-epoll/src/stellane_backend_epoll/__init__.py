"""EpollBackend: an asyncio loop over Linux epoll."""
