"""Two hosts on one machine: network namespaces joined by a virtual cable that can be pulled."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CABLE = 0
_ADDRESSES = ("10.77.0.1", "10.77.0.2")  # of the namespaces alone, so they can't be in use


class Unavailable(Exception):
    """Why there can be no hosts here."""


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise Unavailable(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Host:
    """A namespace with an address; what is started in it sees no other network than the cable."""

    def __init__(self, name: str, interface: str, address: str) -> None:
        self.name, self.interface, self.address = name, interface, address

    def start(self, command: list[str], log: Path, **environment: str) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )

    def link(self, state: str) -> None:
        """``"up"`` or ``"down"``, as with a pulled cable; this host sees it."""
        _ip("-n", self.name, "link", "set", self.interface, state)

    def path(self, state: str, other: "Host") -> None:
        """``"up"`` or ``"down"``: what is sent to the other is lost on its way, without an error."""
        no_address = ("replace", other.address, "lladdr", "02:00:00:00:00:99", "nud", "permanent")
        change = no_address if state == "down" else ("delete", other.address)
        _ip("-n", self.name, "neighbour", *change, "dev", self.interface)

    def kill(self) -> None:
        """Everything that runs here, by SIGKILL."""
        for pid in _ip("netns", "pids", self.name).split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other.

    Raises:
        Unavailable: Where that takes rights or programs that are not there.
    """
    global _CABLE
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        raise Unavailable("network namespaces need Linux and root")
    _CABLE += 1
    mark = f"{os.getpid()}{'abcdefgh'[_CABLE % 8]}"  # an interface's name has 15 characters at most
    hosts = [Host(f"evo{mark}{end}", f"evo{mark}{end}", _ADDRESSES[end]) for end in (0, 1)]
    try:
        try:
            for host in hosts:
                _ip("netns", "add", host.name)
            ends = [host.interface for host in hosts]
            _ip("link", "add", ends[0], "netns", ends[0], "type", "veth", "peer", "name", ends[1], "netns", ends[1])
            for host in hosts:
                _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
                _ip("-n", host.name, "link", "set", "lo", "up")
                host.link("up")
        except FileNotFoundError as error:
            raise Unavailable("the command ip (iproute2) is missing") from error
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            try:
                host.kill()
                _ip("netns", "delete", host.name)  # and the cable with it
            except (Unavailable, OSError):
                continue


def wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until something is so; a TimeoutError if that takes longer."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"Not within {seconds} seconds: {what}")
        time.sleep(0.05)
