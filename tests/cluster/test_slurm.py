"""The Slurm script with stand-ins for Slurm, Ray and diffcert that write down what they hear."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.fault  # shell scripts against the clock: not beside other work

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm.sh"
STANDINS = {
    # Its second line comes when a reader of the first alone would have gone.
    "scontrol": '[ "$1" = show ] && { echo n1; sleep 0.2; echo n2 || exit 1; }; exit 0',
    "srun": f"""case "$*" in
  *hostname*) echo 127.0.0.1 ;;
  *--head*) exec {sys.executable} -S -c "
import os, socket, time
listening = socket.create_server(('127.0.0.1', int(os.environ['PORT']))); time.sleep(60)" ;;
  *) exec sleep 60 ;;
esac""",
    "diffcert": """trap 'echo stored >> "$SAID"; exit 3' TERM
echo "auth $RAY_AUTH_MODE $(wc -c < "$RAY_AUTH_TOKEN_PATH")" >> "$SAID"
[ -n "${CODE:-}" ] && exit "$CODE"
for i in $(seq 300); do sleep 0.1; done""",
}


def free_job_id() -> int:
    """A job whose Ray gets a port that nobody uses."""
    for job in range(os.getpid() % 10_000, 20_000):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", 20_000 + job)):
                return job
    raise RuntimeError("no free port")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    for name, body in STANDINS.items():
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/bash\necho "{name} $*" >> "$SAID"\n{body}\n')
        script.chmod(0o755)
    job = free_job_id()
    return dict(
        os.environ,
        PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        SAID=str(tmp_path / "said"),
        HOME=str(tmp_path),
        PORT=str(20_000 + job),
        SLURM_JOB_ID=str(job),
        SLURM_JOB_NODELIST="n[1-2]",
        SLURM_JOB_NUM_NODES="2",
    )


def command(*arguments: str) -> list[str]:
    return ["bash", str(SCRIPT), *arguments]


def said(environment: dict[str, str]) -> str:
    path = Path(environment["SAID"])
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("code", [0, 1])
def test_driver_runs_on_the_ray_of_all_nodes_and_its_exit_code_is_the_jobs(
    code: int, environment: dict[str, str]
):
    environment["CODE"] = str(code)
    done = subprocess.run(
        command("my.toml", "/shared/run", "--set", "votes.n=5"),
        env=environment, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code
    found, address = said(environment), f"127.0.0.1:{environment['PORT']}"
    assert "--nodelist=n1 ray start --head --block --node-ip-address=127.0.0.1 --port=" in found
    assert f"--exclude=n1 ray start --address={address} --block" in found
    driver = f"diffcert certify my.toml --run /shared/run --address {address} --set votes.n=5\n"
    assert driver in found
    assert "auth token 48\n" in found
    assert "requeue" not in found
    assert not list((Path(environment["HOME"]) / ".ray").iterdir())  # the token is gone


def test_job_that_is_told_to_stop_stores_and_queues_itself_again(environment: dict[str, str]):
    script = subprocess.Popen(command("my.toml", "/shared/run"), env=environment)
    limit = time.monotonic() + 60
    while "auth token" not in said(environment):
        assert time.monotonic() < limit, said(environment)
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    assert script.wait(60) == 3
    assert said(environment).endswith(f"stored\nscontrol requeue {environment['SLURM_JOB_ID']}\n")


def test_missing_arguments_are_refused_with_the_usage(environment: dict[str, str]):
    done = subprocess.run(
        command("my.toml"), env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "usage: sbatch cluster/slurm.sh CONFIG RUN" in done.stderr
