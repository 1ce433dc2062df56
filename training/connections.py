"""The ranks' connections between hosts: which network they take, and how a rank notices that another host is gone."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

INTERFACE = "GLOO_SOCKET_IFNAME"  # gloo's variable: the network interface that it uses
ADDRESS_OF_INTERFACE = 0x8915  # SIOCGIFADDR (`man 7 netdevice`)
# On an idle connection the kernel asks the other host after IDLE seconds, and then every INTERVAL. After PROBES
# questions without an answer the connection is dead.
IDLE, INTERVAL, PROBES = 5, 5, 3


def choose_interface(store: dist.Store, rank: int, world_size: int) -> None:
    """Makes gloo use the network over which the ranks reach their store, unless the user has named an interface. Gloo's
    own choice is the address of the host's name. On many hosts that is 127.0.1.1, which no other host can reach.

    All ranks must call it. It changes nothing if they are all on one host, or reach the store by IPv6 only."""
    mine, of_store = _addresses_to_store()
    store.set(f"addresses/{rank}", f"{mine} {of_store}")
    addresses = [store.get(f"addresses/{other}").decode().split(" ") for other in range(world_size)]
    seen_from_outside = [store_address for own, store_address in addresses if not _is_local(own)]
    if not seen_from_outside or INTERFACE in os.environ:
        return
    # a rank on the store's host reaches the store by a local address, so it takes the one that other hosts use
    interface = _interface_with(seen_from_outside[0] if _is_local(mine) else mine)
    if interface:
        os.environ[INTERFACE] = interface


def _addresses_to_store() -> tuple[str, str]:
    """This host's address on the way to the ranks' store, and the store's; both empty without IPv4. Sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
            return way.getsockname()[0], way.getpeername()[0]
    except OSError:
        return "", ""


def _is_local(address: str) -> bool:
    return not address or ipaddress.ip_address(address).is_loopback


def _interface_with(address: str) -> str:
    """The name of this host's network interface with an IPv4 address; empty if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(asking, ADDRESS_OF_INTERFACE, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""


def notice_lost_hosts() -> None:
    """Makes the kernel check the other end of all TCP connections that this process has. A connection to a host that
    lost its network or its power then fails after 20 seconds. Gloo has no setting for this and would wait for its time
    limit, because nothing tells it that packets no longer arrive."""
    handles = Path("/proc/self/fd")
    for handle in list(handles.iterdir()) if handles.is_dir() else []:  # only Linux has it
        with suppress(OSError), socket.socket(fileno=os.dup(int(handle.name))) as connection:  # OSError: no socket
            if connection.type == socket.SOCK_STREAM and connection.family in (socket.AF_INET, socket.AF_INET6):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, IDLE)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, INTERVAL)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
