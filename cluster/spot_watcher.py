#!/usr/bin/env python3
"""Drain this machine's Ray node when the cloud announces that it takes the machine back.

    python3 spot_watcher.py aws|gcp [--ray PATH] [--poll-s 2] [--endpoint URL]
    python3 spot_watcher.py now --seconds 20     # do not wait: a Kubernetes pod that must end

AWS announces an interruption two minutes ahead (instance metadata service, IMDSv2), GCP half a
minute. A drained node gets no more work: what its actors have comes back, nothing is lost but time.
Without the watcher the driver notices the loss and evaluates again what was under way there.

Needs Python 3.11 or newer and nothing else; starts beside `ray start` on every spot node, ends with
exit code 0 once the node is drained, 1 when it could not be.
"""

import argparse
import datetime
import json
import logging
import math
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger("spot_watcher")

AWS_ENDPOINT = "http://169.254.169.254"
GCP_ENDPOINT = "http://metadata.google.internal"
TOKEN_S = 21600
GCP_NOTICE_S = 30
REQUEST_S = 3.0
DRAIN_TRY_S = 20.0
# Metadata is on this machine: no proxy is asked for it.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Node(NamedTuple):
    """A raylet on this machine: hex id, and the address of its cluster."""

    node_id: str
    gcs_address: str


def request(url: str, headers: dict[str, str], method: str = "GET") -> tuple[int, str]:
    """Status and text of an answer; (0, reason) when there is none."""
    asked = urllib.request.Request(url, headers=headers, method=method)
    try:
        with OPENER.open(asked, timeout=REQUEST_S) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.reason
    except OSError as error:
        return 0, str(error)


class AwsNotice:
    """Asks IMDSv2 whether this spot instance will be interrupted."""

    def __init__(self, endpoint: str = AWS_ENDPOINT) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._token: str | None = None

    def seconds_left(self, now: datetime.datetime) -> float | None:
        """Seconds until the instance goes, or None while nothing is announced."""
        status, text = self._get("/latest/meta-data/spot/instance-action")
        if status == 401:  # the token has expired
            self._token = None
            status, text = self._get("/latest/meta-data/spot/instance-action")
        if status == 404:  # the answer while there is no announcement
            return None
        try:
            goes_at = datetime.datetime.fromisoformat(json.loads(text)["time"])
            return max(0.0, (goes_at - now).total_seconds())
        except (ValueError, KeyError, TypeError):
            logger.warning("metadata service gave no answer status=%s text=%r", status, text[:200])
            return None

    def _get(self, path: str) -> tuple[int, str]:
        if self._token is None:
            ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
            status, text = request(self._endpoint + "/latest/api/token", ttl, "PUT")
            if status != 200:
                return 0, f"no token, status {status}: {text}"
            self._token = text
        return request(self._endpoint + path, {"X-aws-ec2-metadata-token": self._token})


class GcpNotice:
    """Asks the metadata server whether this spot or preemptible machine is being preempted."""

    def __init__(self, endpoint: str = GCP_ENDPOINT) -> None:
        self._url = endpoint.rstrip("/") + "/computeMetadata/v1/instance/preempted"

    def seconds_left(self, now: datetime.datetime) -> float | None:
        """Seconds until the machine goes, or None while nothing is announced."""
        status, text = request(self._url, {"Metadata-Flavor": "Google"})
        if status == 200:
            return GCP_NOTICE_S if text.strip().upper() == "TRUE" else None
        logger.warning("metadata service gave no answer status=%s text=%r", status, text[:200])
        return None


def raylets(proc: Path = Path("/proc")) -> list[Node]:
    """The Ray nodes that run on this machine, from the command lines of its raylets."""
    found = []
    for file in proc.glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:  # ended meanwhile
            continue
        if Path(words[0]).name != "raylet":
            continue
        options = dict(w.lstrip("-").split("=", 1) for w in words[1:] if "=" in w)
        node_id, address = options.get("node_id"), options.get("gcs-address")
        if node_id and address:
            found.append(Node(node_id, address))
    return found


def drain(node: Node, seconds_left: float, ray: str = "ray") -> bool:
    """Ask Ray not to give the node anything any more; whether it accepted."""
    command = [
        ray, "drain-node", "--address", node.gcs_address, "--node-id", node.node_id,
        "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot interruption",
        "--deadline-remaining-seconds", str(math.floor(seconds_left)),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DRAIN_TRY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        logger.error("drain failed node=%s error=%r", node.node_id[:8], str(error))
        return False
    if done.returncode:
        why = (done.stderr or done.stdout).strip()[-300:]
        logger.error("drain refused node=%s error=%r", node.node_id[:8], why)
        return False
    logger.warning("drained node=%s seconds_left=%.0f", node.node_id[:8], seconds_left)
    return True


def drain_all(
    seconds_left: float,
    find: Callable[[], list[Node]],
    drain_one: Callable[[Node, float], bool],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Drain every node of this machine, again until it is accepted or the time is up."""
    until = clock() + seconds_left
    drained = set()
    while True:
        nodes = find()
        for node in nodes:
            if node not in drained and drain_one(node, max(0.0, until - clock())):
                drained.add(node)
        if nodes and drained.issuperset(nodes):
            return True
        if clock() >= until:
            logger.error("not drained nodes=%d drained=%d", len(nodes), len(drained))
            return False
        sleep(1.0)


def utc_now() -> datetime.datetime:
    """The time of day, with its zone."""
    return datetime.datetime.now(datetime.UTC)


def wait_for_notice(cloud: str, endpoint: str | None, poll_s: float) -> float:
    """Ask until the machine's end is announced; returns the seconds until then."""
    notice: AwsNotice | GcpNotice
    if cloud == "aws":
        notice = AwsNotice(endpoint or AWS_ENDPOINT)
    else:
        notice = GcpNotice(endpoint or GCP_ENDPOINT)
    logger.info("watching cloud=%s poll_s=%g", cloud, poll_s)
    while (seconds_left := notice.seconds_left(utc_now())) is None:
        time.sleep(poll_s)
    logger.warning("interruption announced seconds_left=%.0f", seconds_left)
    return seconds_left


def main(arguments: list[str]) -> int:
    """Wait for the announcement, then drain."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cloud", choices=("aws", "gcp", "now"))
    parser.add_argument("--ray", default="ray", help="Ray's command [default: ray]")
    parser.add_argument("--poll-s", type=float, default=2.0, help="seconds between questions")
    parser.add_argument("--endpoint", help="of the metadata service")
    parser.add_argument("--seconds", type=float, default=20.0, help="that are left, with now")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    seconds_left = options.seconds
    if options.cloud != "now":
        seconds_left = wait_for_notice(options.cloud, options.endpoint, options.poll_s)
    drained = drain_all(seconds_left, raylets, lambda node, left: drain(node, left, options.ray))
    return 0 if drained else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
