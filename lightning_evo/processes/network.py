"""How the processes of several hosts find each other."""

from __future__ import annotations

import atexit
import os
import socket
import struct
import time
from datetime import timedelta
from typing import Any

import torch

__all__ = ["agree", "choose_interface", "connect", "interface_towards"]

_GET_ADDRESS = 0x8915  # Linux's SIOCGIFADDR
_TIMEOUT = timedelta(minutes=30)  # torch's own
_PAUSE = 0.01


def choose_interface(address: str) -> None:
    """Have gloo talk to other hosts by the interface that leads to one of them, unless the user has named one.

    Left alone, gloo takes the address that the host's own name resolves to: on many systems the loopback's, which other
    hosts can't reach.
    """
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := interface_towards(address)) is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_towards(address: str) -> str | None:
    """The interface from which this host reaches an address; ``None`` if that is the loopback, or can't be told.

    Args:
        address: Name or IPv4 address of a host, which may be this one.
    """
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
            if own.startswith("127."):
                return None
            for _, name in socket.if_nameindex():
                try:
                    found = fcntl.ioctl(probe, _GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
                except OSError:  # no address
                    continue
                if socket.inet_ntoa(found[20:24]) == own:
                    return name
    except (ImportError, AttributeError, OSError):
        pass
    return None


def connect(backend: str, timeout: timedelta | None, device: torch.device) -> None:
    """Make the default process group where torchrun has started this process; elsewhere Lightning makes it.

    Workers that torchrun starts again meet at the same store as those before them, which holds the addresses of those:
    gloo connects to a process that is gone, NCCL takes an old id (pytorch/pytorch#135712). How often a worker was
    started is counted by each host for itself, so it can't tell the attempts apart; a handshake can.
    """
    distributed: Any = torch.distributed
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or distributed.is_initialized():
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit = timeout or _TIMEOUT
    store = distributed.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world_size, is_master=False, timeout=limit
    )
    attempt = agree(store, rank, world_size, limit)
    distributed.init_process_group(
        backend,
        store=distributed.PrefixStore(f"lightning_evo/{attempt}", store),
        rank=rank,
        world_size=world_size,
        timeout=limit,
        device_id=None if device.type == "cpu" else device,
    )
    if backend == "nccl":  # which complains of groups that are left behind
        atexit.register(lambda: distributed.is_initialized() and distributed.destroy_process_group())


def agree(store: Any, rank: int, world_size: int, timeout: timedelta = _TIMEOUT) -> str:
    """A word that all processes of this attempt get, and none of an earlier one at the same store.

    Each process says a random word. That of rank 0 counts; it answers to the others' words, and waits until each has
    repeated its own. A process reads only keys that hold a word of its own, so nobody who is gone can have written
    them; all but the words of ranks > 0, and an old one of these is answered in vain.

    Raises:
        TimeoutError: If a process does not come in time.
    """
    distributed: Any = torch.distributed
    store = distributed.PrefixStore("lightning_evo/agree", store)
    own, end = os.urandom(8).hex(), time.monotonic() + timeout.total_seconds()
    if rank:
        store.set(f"word/{rank}", own)
        store.wait([f"answer/{own}"], timeout)
        word: str = store.get(f"answer/{own}").decode()
        store.set(f"repeated/{word}/{rank}", "1")
        return word
    missing, answered = set(range(1, world_size)), set[bytes]()
    while missing:
        for other in sorted(missing):
            if store.check([f"repeated/{own}/{other}"]):
                missing.remove(other)
            elif store.check([f"word/{other}"]) and (theirs := store.get(f"word/{other}")) not in answered:
                answered.add(theirs)
                store.set(f"answer/{theirs.decode()}", own)
        if missing and time.monotonic() > end:
            raise TimeoutError(f"Processes {sorted(missing)} did not come within {timeout}.")
        time.sleep(_PAUSE if missing else 0)
    return own
