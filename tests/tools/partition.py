"""A machine whose network can be cut: a network namespace of its own, joined to this machine's by a pair of devices."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil


class Machine:
    """Another machine, seen from here: what runs in it has its `address`, and finds us at `ours`."""

    def __init__(self, name: str, network: str) -> None:
        self.ours, self.address = f"{network}.1", f"{network}.2"
        self._name = name
        self._processes: list[subprocess.Popen[bytes]] = []

    def make(self) -> None:
        """Raises `CalledProcessError` where this process may not make namespaces."""
        here, there = f"{self._name}a", f"{self._name}b"
        inside = ["netns", "exec", self._name, "ip"]
        for command in (
            ["netns", "add", self._name],
            ["link", "add", here, "type", "veth", "peer", "name", there],
            ["link", "set", there, "netns", self._name],
            ["addr", "add", f"{self.ours}/24", "dev", here],
            ["link", "set", here, "up"],
            [*inside, "addr", "add", f"{self.address}/24", "dev", there],
            [*inside, "link", "set", there, "up"],
            [*inside, "link", "set", "lo", "up"],
        ):
            subprocess.run(["ip", *command], check=True, capture_output=True)

    def cut(self) -> None:
        """Nothing passes any more, in either direction, and nobody is told."""
        subprocess.run(["ip", "link", "set", f"{self._name}a", "down"], check=True)

    def mend(self) -> None:
        """The network is as it was."""
        subprocess.run(["ip", "link", "set", f"{self._name}a", "up"], check=True)

    def start_node(self, head: str, cpus: int) -> None:
        """A raylet of the Ray cluster whose head is at this address (`ours:port`)."""
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={head}", f"--num-cpus={cpus}"]
        command = ["ip", "netns", "exec", self._name, *ray, f"--node-ip-address={self.address}", "--block"]
        output = subprocess.DEVNULL
        self._processes.append(subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True))

    def running(self) -> bool:
        """Whether its node's processes are still there."""
        return any(process.poll() is None for process in self._processes)

    def remove(self) -> None:
        """With whatever runs in it."""
        listed = subprocess.run(["ip", "netns", "pids", self._name], capture_output=True, text=True, check=False)
        processes = [int(pid) for pid in listed.stdout.split()] + [process.pid for process in self._processes]
        for pid in processes:
            with suppress(ProcessLookupError, psutil.Error):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        subprocess.run(["ip", "netns", "del", self._name], capture_output=True, check=False)


@contextmanager
def machine() -> Iterator[Machine | None]:
    """None where it cannot be made: that needs `ip` and the right to administer the network."""
    found = Machine(f"rg{os.getpid()}", f"10.231.{os.getpid() % 250}")
    try:
        if shutil.which("ip") is None:
            yield None
            return
        try:
            found.make()
        except subprocess.CalledProcessError:
            yield None
            return
        yield found
    finally:
        if shutil.which("ip"):
            found.remove()
