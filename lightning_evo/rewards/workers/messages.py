"""Messages between the training and a worker: eight bytes that give the length, then the message."""

from __future__ import annotations

import socket
import struct

__all__ = ["Inbox", "framed", "receive", "send"]

_LENGTH = struct.Struct("<Q")
_LARGEST = 1 << 40


def framed(body: bytes) -> bytes:
    r"""A message as it is sent.

    Example:
        >>> framed(b"no")
        b'\x02\x00\x00\x00\x00\x00\x00\x00no'
    """
    return _LENGTH.pack(len(body)) + body


def send(to: socket.socket, body: bytes) -> None:
    """Send a message, however long it takes."""
    to.sendall(framed(body))


def receive(source: socket.socket) -> bytes:
    """Wait for a message.

    Raises:
        EOFError: If the other end is closed.
    """
    return _exactly(source, _LENGTH.unpack(_exactly(source, _LENGTH.size))[0])


def _exactly(source: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = source.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("The other end of the socket is closed.")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Inbox:
    """Puts messages together from what arrives in pieces.

    Example:
        >>> inbox = Inbox()
        >>> inbox.add(framed(b"one") + framed(b"two")[:9])
        [b'one']
        >>> inbox.add(b"wo")
        [b'two']
    """

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, part: bytes) -> list[bytes]:
        """The messages that are complete now.

        Raises:
            ValueError: If what arrives can't be a message.
        """
        self._bytes += part
        complete = []
        while len(self._bytes) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._bytes)[0]
            if end > _LARGEST:
                raise ValueError(f"A message of {end} bytes.")
            if len(self._bytes) < end:
                break
            complete.append(bytes(self._bytes[_LENGTH.size : end]))
            del self._bytes[:end]
        return complete
