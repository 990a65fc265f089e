"""File operations: acknowledged only when the write was whole and the sync succeeded."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest


def test_what_was_written_is_in_the_file_and_read_back(run, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        try:
            assert await loop.file_write(fd, b"hello, ", 0) == 7
            assert await loop.file_write(fd, bytearray(b"world"), 7, sync=True) == 5
            await loop.file_sync(fd)
            await loop.file_sync(fd, data_only=False)
            assert (tmp_path / "file").read_bytes() == b"hello, world"
            assert await loop.file_read(fd, 5, 7) == b"world"
            assert await loop.file_read(fd, 100, 7) == b"world"
            assert await loop.file_read(fd, 100, 1000) == b""
        finally:
            os.close(fd)

    run(main())


def test_many_writes_at_once_are_all_whole(run, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        try:
            pieces = [os.urandom(10_000 + number) for number in range(50)]
            offsets = [sum(map(len, pieces[:number])) for number in range(50)]
            await asyncio.gather(
                *(loop.file_write(fd, piece, offset, sync=True) for piece, offset in zip(pieces, offsets, strict=True))
            )
            assert (tmp_path / "file").read_bytes() == b"".join(pieces)
        finally:
            os.close(fd)

    run(main())


def test_a_write_that_does_not_fit_is_an_error_not_a_short_count(run, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        try:
            with pytest.raises(OSError, match=r".") as caught:
                await loop.file_write(fd, b"x" * 20_000, 0, sync=True)
            assert caught.value.errno in (errno.EFBIG, errno.EIO)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
            os.close(fd)

    run(main())


def test_errors_name_the_cause(run):
    async def main():
        loop = asyncio.get_running_loop()
        closed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1
        for operation in (loop.file_write(closed, b"x", 0), loop.file_sync(closed), loop.file_read(closed, 1, 0)):
            with pytest.raises(OSError, match="Bad file descriptor"):
                await operation

    run(main())


def test_a_sync_the_file_can_not_do_fails(run):
    async def main():
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        try:
            with pytest.raises(OSError, match="Invalid argument"):
                await loop.file_sync(reading)
        finally:
            os.close(reading)
            os.close(writing)

    run(main())


def test_a_cancelled_write_still_happens(run, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        try:
            task = asyncio.create_task(loop.file_write(fd, b"x" * 100_000, 0))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            while (tmp_path / "file").stat().st_size < 100_000:
                await asyncio.sleep(0.001)
        finally:
            os.close(fd)

    run(main())


def test_a_cancelled_write_or_sync_is_over_when_its_caller_is_told(run, tmp_path):
    """The caller closes its descriptor then, and the number may be another file's right after."""

    async def main():
        loop = asyncio.get_running_loop()
        threads, release = ThreadPoolExecutor(1), threading.Event()
        loop.set_default_executor(threads)
        await asyncio.sleep(0)
        before = loop.statistics().open
        fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        try:
            for operation in (loop.file_write(fd, b"x" * 100_000, 0, sync=True), loop.file_sync(fd)):
                threads.submit(release.wait)  # the poller without file operations does not begin before
                loop.call_later(0.02, release.set)
                task = asyncio.create_task(operation)
                await asyncio.sleep(0)
                task.cancel()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert loop.statistics().open == before
                assert release.is_set() or loop.poller_name == "io_uring"
                assert (tmp_path / "file").stat().st_size == 100_000
                release.clear()
        finally:
            release.set()
            os.close(fd)

    run(main())


def test_a_failure_is_told_to_who_was_not_cancelled(run):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: pytest.fail(str(context)))
        closed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1
        kept, cancelled = (asyncio.create_task(loop.file_write(closed, b"x", 0)) for _ in range(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        outcomes = await asyncio.gather(kept, cancelled, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OSError, asyncio.CancelledError]

    run(main())
