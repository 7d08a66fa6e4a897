"""How the processes of several hosts find each other."""

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch

from lightning_evo.processes.network import agree, choose_interface, interface_towards

LIMIT = timedelta(seconds=20)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "::1", "no.such.host.invalid"])
def test_no_interface_leads_to_oneself_or_nowhere(address, monkeypatch):
    def resolve(*args):
        raise socket.gaierror

    if address.endswith("invalid"):
        monkeypatch.setattr(socket.socket, "connect", resolve)
    assert interface_towards(address) is None
    environment = {}
    monkeypatch.setattr("os.environ", environment)
    choose_interface(address)
    assert not environment


def test_an_interface_that_the_user_has_named_stays(monkeypatch):
    monkeypatch.setattr("lightning_evo.processes.network.interface_towards", lambda address: "other")
    environment = {"GLOO_SOCKET_IFNAME": "mine"}
    monkeypatch.setattr("os.environ", environment)
    choose_interface("192.0.2.1")
    assert environment == {"GLOO_SOCKET_IFNAME": "mine"}
    environment.clear()
    choose_interface("192.0.2.1")
    assert environment == {"GLOO_SOCKET_IFNAME": "other"}


@pytest.mark.parametrize("world", [1, 2, 5])
def test_attempts_at_the_same_store_get_different_words(world):
    """The second to fourth find the words of those before, as a torchrun that restarts its workers leaves them."""
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)

    def client(rank):
        store = torch.distributed.TCPStore("127.0.0.1", server.port, is_master=False, timeout=LIMIT)
        return agree(store, rank, world, LIMIT)

    words = []
    with ThreadPoolExecutor(world) as pool:
        for _ in range(4):
            (word,) = set(pool.map(client, range(world)))
            words.append(word)
    assert len(set(words)) == 4


def test_a_process_that_does_not_come():
    server = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
    with pytest.raises(
        TimeoutError, match=r"Processes \[1, 2\] did not connect within 0:00:00.100000. Look on their hosts"
    ):
        agree(server, 0, 3, timedelta(seconds=0.1))
