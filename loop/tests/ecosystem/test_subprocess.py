"""asyncio.subprocess: pipes with flow control, many children, exit codes, cancellation."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loop.tests.ecosystem.conftest import Program
from loop.tests.ecosystem.payload import LARGE_BYTES, payload

Run = Callable[[Program], Any]


async def overfill(writer: asyncio.StreamWriter) -> None:
    """Write much more than a pipe holds."""
    for _ in range(1000):
        writer.write(bytes(1 << 16))
        await writer.drain()


def test_large_input_and_output(run: Run) -> None:
    async def program() -> None:
        sent = payload(LARGE_BYTES)
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        received, _ = await process.communicate(sent)
        assert received == sent
        assert process.returncode == 0

    run(program())


def test_a_slow_reader_holds_the_child_back(run: Run) -> None:
    async def program() -> None:
        script = f"import sys; [sys.stdout.write('%08d\\n' % n) for n in range({LARGE_BYTES // 9})]"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=PIPE, limit=1 << 12)
        assert process.stdout is not None
        expected = 0
        async for line in process.stdout:
            assert int(line) == expected
            expected += 1
            if expected % 100_000 == 0:
                await asyncio.sleep(0.01)
        assert expected == LARGE_BYTES // 9
        assert await process.wait() == 0

    run(program())


def test_many_children_at_once(run: Run) -> None:
    async def program() -> None:
        async def one(number: int) -> tuple[int, bytes]:
            command = f"echo {number}; echo error >&2; exit {number}"
            process = await asyncio.create_subprocess_shell(command, stdout=PIPE, stderr=STDOUT)
            output, _ = await process.communicate()
            assert process.returncode is not None
            return process.returncode, output

        results = await asyncio.gather(*map(one, range(40)))
        assert results == [(number, b"%d\nerror\n" % number) for number in range(40)]

    run(program())


def test_signals_and_cancellation(run: Run) -> None:
    async def program() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60", stdout=DEVNULL)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await process.wait()
        process.terminate()
        waiters = [asyncio.create_task(process.wait()) for _ in range(5)]
        assert await asyncio.gather(*waiters) == [-signal.SIGTERM] * 5
        with pytest.raises(ProcessLookupError):
            process.kill()

    run(program())


def test_environment_directory_and_descriptors(run: Run, tmp_path: Path) -> None:
    async def program() -> None:
        read_end, write_end = os.pipe()
        try:
            script = f"import os; os.write({write_end}, os.environb[b'WORD']); print(os.getcwd())"
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", script, stdout=PIPE, cwd=tmp_path, env={"WORD": "word"}, pass_fds=[write_end]
            )
            output, _ = await process.communicate()
            assert Path(output.decode().strip()) == tmp_path.resolve()
            assert os.read(read_end, 100) == b"word"
        finally:
            os.close(read_end)
            os.close(write_end)
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec(tmp_path / "nothing", stdin=PIPE, stdout=PIPE)

    run(program())


def test_a_child_that_reads_nothing_breaks_the_pipe(run: Run) -> None:
    async def program() -> None:
        process = await asyncio.create_subprocess_exec("true", stdin=PIPE)
        assert process.stdin is not None
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await overfill(process.stdin)
        assert await process.wait() == 0

    run(program())


def test_the_loop_and_the_user_may_both_wait_for_children(run: Run) -> None:
    """A SIGCHLD handler of the user's is left alone, and os.waitpid still works for children of theirs."""

    async def program() -> None:
        seen = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, seen.set)
        pid = os.posix_spawnp("true", ["true"], os.environ)
        await seen.wait()
        assert os.waitpid(pid, 0)[1] == 0
        process = await asyncio.create_subprocess_exec("false")
        assert await process.wait() == 1
        assert loop.remove_signal_handler(signal.SIGCHLD)

    run(program())
