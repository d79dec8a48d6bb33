"""The spot watcher against a metadata service on this machine, and a fake of the ray command."""

import datetime
import json
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import spot_watcher
from cluster.spot_watcher import AwsNotice, GcpNotice, Node, drain, drain_all, raylets

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
NODE = Node("ab" * 28, "10.0.0.1:6379")


class Metadata:
    """A metadata service: set ``answer``; what it was asked is in ``asked``."""

    def __init__(self) -> None:
        self.answer: tuple[int, str] = (404, "")
        self.token = "token-1"
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def answered(self) -> None:
                headers = {k.lower(): v for k, v in self.headers.items()}
                service.asked.append((self.command, self.path, headers))
                status, text = service.reply(self.command, self.path, headers)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = answered

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: the tests read what was asked."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def reply(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if method == "PUT" and path == "/latest/api/token":
            wanted = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "").isdigit()
            return (200, self.token) if wanted else (400, "")
        if path == "/latest/meta-data/spot/instance-action":
            if headers.get("x-aws-ec2-metadata-token") != self.token:
                return 401, ""
            return self.answer
        if path == "/computeMetadata/v1/instance/preempted":
            return self.answer if headers.get("metadata-flavor") == "Google" else (403, "")
        return 400, "another path"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    service = Metadata()
    yield service
    service.close()


def action(seconds: float) -> tuple[int, str]:
    goes_at = NOW + datetime.timedelta(seconds=seconds)
    return 200, json.dumps({"action": "terminate", "time": f"{goes_at:%Y-%m-%dT%H:%M:%SZ}"})


def test_aws_notice_gives_the_seconds_that_are_left(metadata: Metadata):
    notice = AwsNotice(metadata.url)
    assert notice.seconds_left(NOW) is None
    metadata.answer = action(118)
    assert notice.seconds_left(NOW) == 118
    metadata.answer = action(-3)  # late: it goes at any moment
    assert notice.seconds_left(NOW) == 0
    assert [a[0] for a in metadata.asked].count("PUT") == 1  # one session token for all


def test_aws_token_that_has_expired_is_replaced(metadata: Metadata):
    notice = AwsNotice(metadata.url)
    assert notice.seconds_left(NOW) is None
    metadata.token = "token-2"
    metadata.answer = action(60)
    assert notice.seconds_left(NOW) == 60


@pytest.mark.parametrize("answer", [(500, "broken"), (200, "<html>"), (200, "[]"), (200, "{}")])
def test_aws_answer_that_announces_nothing_is_logged_and_watching_goes_on(
    answer: tuple[int, str], metadata: Metadata, caplog: pytest.LogCaptureFixture
):
    metadata.answer = answer
    assert AwsNotice(metadata.url).seconds_left(NOW) is None
    assert "gave no answer" in caplog.text


def test_gcp_notice_gives_half_a_minute(metadata: Metadata):
    notice = GcpNotice(metadata.url)
    metadata.answer = (200, "FALSE")
    assert notice.seconds_left(NOW) is None
    metadata.answer = (200, "TRUE\n")
    assert notice.seconds_left(NOW) == 30


@pytest.mark.parametrize("notice", [AwsNotice, GcpNotice])
def test_metadata_service_that_is_away_is_logged_and_watching_goes_on(
    notice: type, metadata: Metadata, caplog: pytest.LogCaptureFixture
):
    metadata.close()
    assert notice(metadata.url).seconds_left(NOW) is None
    assert "gave no answer" in caplog.text


def process(proc: Path, pid: int, *words: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cmdline").write_bytes("\0".join(words).encode() + b"\0")


def test_raylets_are_found_by_their_command_lines(tmp_path: Path):
    options = [f"--node_id={NODE.node_id}", "--gcs-address=10.0.0.1:6379", "--labels={}"]
    process(tmp_path, 10, "/opt/ray/core/src/ray/raylet/raylet", "--x", *options)
    process(tmp_path, 11, "python", "agent.py", *options)  # of the same node, but no raylet
    process(tmp_path, 12, "/opt/raylet", "--gcs-address=10.0.0.1:6379")  # without an id
    process(tmp_path, 13, "")
    (tmp_path / "14").mkdir()  # ended meanwhile
    assert raylets(tmp_path) == [NODE]


def fake_ray(tmp_path: Path, code: int = 0) -> Path:
    """A command that writes down its arguments and ends with a code."""
    script = tmp_path / "ray"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\necho "not now" >&2\nexit {code}\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


def test_drain_command_names_node_reason_and_deadline(tmp_path: Path):
    assert drain(NODE, 28.7, str(fake_ray(tmp_path)))
    assert (tmp_path / "said").read_text() == (
        f"drain-node --address 10.0.0.1:6379 --node-id {NODE.node_id} "
        "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot interruption "
        "--deadline-remaining-seconds 28\n"
    )


def test_refused_or_missing_command_is_logged_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    assert not drain(NODE, 28, str(fake_ray(tmp_path, code=1)))
    assert not drain(NODE, 28, str(tmp_path / "nowhere"))
    assert "not now" in caplog.text
    assert "nowhere" in caplog.text


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_every_node_of_the_machine_is_drained_once_and_refusals_are_tried_again():
    clock, calls = Clock(), []
    other = Node("cd" * 28, "10.0.0.1:6379")

    def drain_one(node: Node, left: float) -> bool:
        calls.append((node, left))
        return node == NODE or len(calls) > 3

    assert drain_all(30, lambda: [NODE, other], drain_one, clock.sleep, clock)
    assert calls == [(NODE, 30), (other, 30), (other, 29), (other, 28)]


@pytest.mark.parametrize("nodes", [[NODE], []], ids=["refused", "no raylet"])
def test_draining_ends_when_the_time_is_up(nodes: list[Node], caplog: pytest.LogCaptureFixture):
    clock = Clock()
    assert not drain_all(3, lambda: nodes, lambda node, left: False, clock.sleep, clock)
    assert clock.now == 103
    assert "not drained" in caplog.text


def test_watcher_waits_for_the_announcement_drains_and_ends(
    metadata: Metadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    answers = iter([(200, "FALSE"), (200, "FALSE"), (200, "TRUE")])
    monkeypatch.setattr(metadata, "reply", lambda *asked: next(answers))
    monkeypatch.setattr(spot_watcher, "raylets", lambda: [NODE])
    arguments = ["gcp", "--endpoint", metadata.url, "--poll-s", "0.01"]
    assert spot_watcher.main([*arguments, "--ray", str(fake_ray(tmp_path))]) == 0
    assert len(metadata.asked) == 3
    assert NODE.node_id in (tmp_path / "said").read_text()


def test_now_drains_without_asking_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(spot_watcher, "raylets", lambda: [NODE])
    assert spot_watcher.main(["now", "--seconds", "15.5", "--ray", str(fake_ray(tmp_path))]) == 0
    assert (tmp_path / "said").read_text().endswith("--deadline-remaining-seconds 15\n")
