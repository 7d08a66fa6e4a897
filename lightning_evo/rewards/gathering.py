"""A thread with an event loop, in which coroutine functions run at the same time."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Awaitable, Sequence
from typing import Any

__all__ = ["Gathering"]


class Gathering:
    """Awaits from code that is not asynchronous, also where an event loop runs already, as in a notebook.

    The loop stays: clients for requests keep connections that belong to the loop in which they were made.

    Example:
        >>> async def double(number):
        ...     await asyncio.sleep(0.01)
        ...     return 2 * number
        >>> Gathering().all([double(1), double(2)])
        [2, 4]
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._owner = 0

    def all(self, awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
        """Wait for all of them; what one raises is raised here.

        Args:
            awaitables: Coroutines and the like.

        Returns:
            What each gave.
        """

        async def gathered() -> list[Any]:
            return list(await asyncio.gather(*awaitables))

        future = asyncio.run_coroutine_threadsafe(gathered(), self._running())
        try:
            return future.result()
        except BaseException:  # Ctrl-C above all
            future.cancel()
            raise

    def one(self, awaitable: Awaitable[Any]) -> Any:
        """Wait for one."""
        return self.all([awaitable])[0]

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._owner != os.getpid():  # a fork has no threads
            self._owner = os.getpid()
            self._loop = asyncio.new_event_loop()
            thread = threading.Thread(target=self._loop.run_forever, name="reward functions", daemon=True)
            thread.start()
            weakref.finalize(self, _stop, self._loop, thread, self._owner)
        return self._loop


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread, owner: int) -> None:
    if os.getpid() != owner:
        return
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5)
    if not thread.is_alive():
        loop.close()
