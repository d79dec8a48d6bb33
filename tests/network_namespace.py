"""A node of a Ray cluster behind a network link of its own, which can be cut without a sound.

Needs root and Linux's `ip`; `why_not` says what is missing.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 90


def why_not() -> str:
    """Why no node can be cut off here; "" if one can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "cutting off a node needs Linux and its `ip` command"
    if os.geteuid() != 0:
        return "cutting off a node needs root"
    name = f"try{secrets.token_hex(3)}"
    if _ip("netns", "add", name, check=False):
        return "this process may not make network namespaces"
    _ip("netns", "del", name)
    return ""


@dataclass(frozen=True)
class Link:
    """A veth pair from this machine to a namespace: ``here`` and ``there`` are its addresses."""

    namespace: str
    device: str
    here: str
    there: str

    def start_node(self, gcs_port: str, log: Path) -> None:
        """Start a raylet of one CPU in the namespace that joins the cluster at ``here``."""
        command = [
            "ip", "netns", "exec", self.namespace,
            sys.executable, "-m", "ray.scripts.scripts", "start",
            f"--address={self.here}:{gcs_port}", f"--node-ip-address={self.there}",
            "--num-cpus=1", f"--object-store-memory={80 * 2**20}", "--disable-usage-stats",
        ]  # fmt: skip
        with log.open("wb") as output:
            ended = subprocess.run(
                command, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False
            )
        if ended.returncode:
            raise RuntimeError(log.read_text()[-3000:])

    def cut(self) -> None:
        """From now on every packet is lost; neither side is told."""
        _ip("link", "set", self.device, "down")

    def processes(self) -> list[int]:
        """What runs in the namespace."""
        found = subprocess.run(
            ["ip", "netns", "pids", self.namespace],
            capture_output=True, text=True, timeout=LIMIT_S, check=True,
        )  # fmt: skip
        return [int(pid) for pid in found.stdout.split()]


@contextmanager
def linked_namespace() -> Iterator[Link]:
    """A namespace with a link; at the end, what still runs in it is killed."""
    name = f"dc{secrets.token_hex(3)}"
    subnet = f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(250)}"
    link = Link(name, f"{name}h", f"{subnet}.1", f"{subnet}.2")
    _ip("netns", "add", name)
    try:
        _ip("link", "add", link.device, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("addr", "add", f"{link.here}/24", "dev", link.device)
        _ip("link", "set", link.device, "up")
        _ip("-n", name, "addr", "add", f"{link.there}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", name, "link", "set", device, "up")
        yield link
    finally:
        for pid in link.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _ip("link", "del", link.device, check=False)
        _ip("netns", "del", name)


def _ip(*arguments: str, check: bool = True) -> int:
    return subprocess.run(
        ["ip", *arguments], timeout=LIMIT_S, check=check, capture_output=not check
    ).returncode
