"""Two hosts on one machine. Linux namespaces give each its own network, host name, /etc/hosts and processes. They have
no names, so several runs of the tests do not meet; the kernel removes them when their first process ends."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

CABLE = "cable"  # the network interface of each host
# the first of these that the kernel has: netem delays packets, tbf lets 20 Mbit a second through
SLOWNESS = ("netem delay 5ms 2ms", "tbf rate 20mbit burst 16kb latency 400ms")
SCRIPT = """
set -e
read -r number others < /proc/self/stat  # of this process, as its parent knows it
for file in hosts nsswitch.conf; do mount --bind "$0/$file" /etc/$file; done
hostname "$1"
ip link set lo up
echo $number
exec cat  # until its input ends, with the process that has started this one
"""


@dataclass(frozen=True)
class Host:
    name: str
    address: str
    first: int  # the number of its first process, which does nothing

    def run(self, command: str) -> None:
        subprocess.run([*self._inside(), *command.split()], check=True, capture_output=True)

    def start(self, command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Starts a command on this host, with its output in `log`."""
        with log.open("ab") as file:
            everything = {**os.environ, **environment}
            return subprocess.Popen([*self._inside(), *command], env=everything, stdout=file, stderr=file)

    def _inside(self) -> list[str]:
        kinds = ("--net", "--uts", "--mount", "--pid")
        return ["nsenter", f"--target={self.first}", *kinds, f"--wd={Path.cwd()}"]

    def enter(self) -> None:
        """Moves this process, which must have no other threads, to this host."""
        folder, library = Path.cwd(), ctypes.CDLL(None, use_errno=True)  # os.setns needs Python 3.12
        namespaces = [os.open(f"/proc/{self.first}/ns/{kind}", os.O_RDONLY) for kind in ("net", "uts", "mnt")]
        for namespace in namespaces:
            if library.setns(namespace, 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            os.close(namespace)
        os.chdir(folder)

    def plug_in(self) -> None:
        self.run(f"ip link set {CABLE} up")

    def pull_cable(self) -> None:
        """Nothing tells the other host: its packets no longer arrive."""
        self.run(f"ip link set {CABLE} down")


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts with a slow cable between them. As on Debian, a host's own name leads to 127.0.1.1. Skips the test if
    the hosts cannot be made."""
    addresses = {"alpha": "10.97.0.2", "beta": "10.97.0.1"}
    started: list[subprocess.Popen[str]] = []
    try:
        hosts = []
        for name, address in addresses.items():
            lines = [f"{'127.0.1.1' if other == name else at} {other}" for other, at in addresses.items()]
            etc = folder / f"etc of {name}"
            etc.mkdir()
            (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
            (etc / "nsswitch.conf").write_text("hosts: files\n")  # no cable leads to a name server
            started.append(_unshared(etc, name))
            hosts.append(Host(name, address, _number(started[-1])))
        ends = [f"netns {host.first} name {CABLE}" for host in hosts]
        subprocess.run(f"ip link add {ends[0]} type veth peer {ends[1]}".split(), check=True)
        for host in hosts:
            host.run(f"ip address add {host.address}/24 dev {CABLE}")
            host.plug_in()
            _slow_down(host)
        yield hosts[0], hosts[1]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def _unshared(etc: Path, name: str) -> subprocess.Popen[str]:
    missing = [program for program in ("ip", "tc", "unshare", "nsenter", "hostname") if not shutil.which(program)]
    if missing:
        _skip(f"{', '.join(missing)} not found")
    kinds = ("--net", "--uts", "--mount", "--pid", "--fork", "--kill-child")
    command = ["unshare", *kinds, "sh", "-c", SCRIPT, str(etc), name]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _number(started: subprocess.Popen[str]) -> int:
    assert started.stdout
    number = started.stdout.readline()
    if not number:
        _skip(started.communicate()[1].strip())
    return int(number)


def _skip(reason: str) -> None:
    pytest.skip(f"NO NETWORK NAMESPACES HERE, so training on two hosts was not tested; needs root, iproute2: {reason}")


def _slow_down(host: Host) -> None:
    for slowness in SLOWNESS:
        try:
            return host.run(f"tc qdisc add dev {CABLE} root {slowness}")
        except subprocess.CalledProcessError as error:
            reason = error.stderr.decode().strip()
    return _skip(f"no cable can be made slow ({reason})")
