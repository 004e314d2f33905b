"""The network between machines: which of a machine's interfaces leads to the others."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from rlhf import process

_SIOCGIFADDR = 0x8915


def choose_interface() -> None:
    """Let gloo use the network that leads to the first node, unless GLOO_SOCKET_IFNAME says another. By itself it takes
    the address of the machine's name, which on many systems is 127.0.1.1."""
    if process.node_count() == 1 or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    own = address_towards(os.environ["MASTER_ADDR"])
    for _, name in socket.if_nameindex():
        if own is not None and _address_of(name) == own and not own.startswith("127."):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return


def address_towards(host: str) -> str | None:
    """This machine's address in the network through which it reaches `host`. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        try:
            unused.connect((host, 9))
            return str(unused.getsockname()[0])
        except OSError:
            return None


def _address_of(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unused:
        try:
            packed = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(unused.fileno(), _SIOCGIFADDR, packed)[20:24])
        except OSError:
            return None
