"""By which of its networks a host reaches the others."""

from __future__ import annotations

import os
import socket
import struct

__all__ = ["choose_interface", "interface_towards"]

_GET_ADDRESS = 0x8915  # Linux's SIOCGIFADDR


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
