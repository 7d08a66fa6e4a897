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
    started is counted by each host for itself, so it can't identify an attempt; a handshake can.
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
    """A random word that all processes of this attempt agree on, and that no earlier attempt at the same store had.

    Each process writes a random word to the store. Rank 0 answers the word of each other process with its own, and
    waits until each has repeated that. A process reads only keys that contain its own word, so no process of an
    earlier attempt can have written them. The exception are the words of ranks > 0; rank 0 answers an old one, too,
    and no process reads the answer.

    Raises:
        TimeoutError: If a process does not connect in time.
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
            raise TimeoutError(
                f"Processes {sorted(missing)} did not connect within {timeout}. Look on their hosts whether they "
                "started, or give them more time: timeout=…"
            )
        time.sleep(_PAUSE if missing else 0)
    return own
