"""Processes for the tests of this folder."""

from collections.abc import Callable, Iterator

import pytest

from tests.strategies.processes import Processes, processes


@pytest.fixture(scope="session")
def world() -> Iterator[Callable[[int], Processes]]:
    """Pools of processes by their number, started when they are first wanted."""
    pools, contexts = {}, []

    def get(count: int) -> Processes:
        if count not in pools:
            contexts.append(processes(count))
            pools[count] = contexts[-1].__enter__()
        return pools[count]

    yield get
    for context in contexts:
        context.__exit__(None, None, None)
