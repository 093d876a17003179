"""A TCP relay between a client and a server, whose connections can be cut, muted and refused."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

DEADLINE_S = 60.0


class Relay:
    """Listens on a port of its own and passes everything on to `port`, on a thread of its own."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self._refuses = False
        self._can_pass = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="relay")
        self._thread.start()
        assert self._started.wait(DEADLINE_S)

    def cut(self) -> None:
        """Drop every connection, and refuse new ones until `restore`."""
        self._call(self._cut())

    def mute(self) -> None:
        """Pass nothing on over the connections there are, which stay open; new ones work."""
        self._call(self._mute())

    def restore(self) -> None:
        """Take connections again."""
        self._refuses = False

    def close(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    async def _cut(self) -> None:
        self._refuses = True
        self._can_pass.set()
        for writer in list(self._writers):
            writer.transport.abort()

    async def _mute(self) -> None:
        self._can_pass.clear()
        self._can_pass = asyncio.Event()  # of the connections to come
        self._can_pass.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._can_pass.set()
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        await self._cut()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        writers = {writer, there_writer}
        self._writers |= writers
        try:
            gate = self._can_pass
            await asyncio.gather(self._pass(reader, there_writer, gate), self._pass(there_reader, writer, gate))
        except OSError:
            pass
        finally:
            self._writers -= writers
            for each in writers:
                each.transport.abort()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
