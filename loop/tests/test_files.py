"""File operations: acknowledged only when the write was whole and the sync succeeded."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal

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
