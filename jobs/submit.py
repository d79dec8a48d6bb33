"""Run a diffcert command on a Ray cluster as a Ray job: certify, status, report, verify, compact.

    python jobs/submit.py certify my.toml --run s3://bucket/run1 --set votes.n=10000
    python jobs/submit.py status s3://bucket/run1

The job needs nothing from this machine but the configuration, which is sent along, and nothing from
the cluster but the store: submit the same command again after any loss. Further options go to
diffcert unchanged. The cluster is --cluster, RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265 (what
`ray dashboard cluster/aws.yaml` and `kubectl port-forward` open); its token is RAY_AUTH_TOKEN or
the file ~/.ray/auth_token. The exit code is the command's own: 3 is incomplete, submit again.
"""

import argparse
import asyncio
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "ray" not in sys.modules:  # Ray reads it while it is imported
    os.environ.setdefault("RAY_AUTH_MODE", "token")
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from diffcert_ray.config.loading import load_config
from diffcert_ray.config.tables import Config
from diffcert_ray.errors import ConfigError

ON_A_RUN = ("status", "report", "verify", "compact")
LOCAL_PORT = "http://127.0.0.1:8265"
# Ray kills a stopped job after 3 s unless told otherwise; the driver stores what has come back.
ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "60", "DIFFCERT_LOG_LEVEL": "INFO"}
STATUS_S = 60.0  # how long a finished job's status may lag behind its log
NO_DEFAULT = (
    "submitting jobs needs the extras of Ray that ray[default] names, on this machine and on the "
    "head: pip install 'diffcert_ray[cluster]' (or pip install 'ray[default]')"
)
NOT_FOUND = 127  # exit code of a shell that knows no such command
START_S = 120.0  # how long a head may take from its first answer until it takes jobs


def parsed(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that matter here, and the rest, which are the command's own."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # of what goes to diffcert
    )
    parser.add_argument("--cluster", default=os.environ.get("RAY_API_SERVER_ADDRESS", LOCAL_PORT))
    parser.add_argument("--no-wait", action="store_true", help="submit, and do not follow the log")
    commands = parser.add_subparsers(dest="command", required=True)
    certify = commands.add_parser("certify", help="start a run, or continue it", allow_abbrev=False)
    certify.add_argument("config", help="TOML file or preset")
    certify.add_argument("--run", required=True, help="s3:// prefix, or absolute folder")
    certify.add_argument("--set", action="append", default=[], dest="overrides")
    for name in ON_A_RUN:
        command = commands.add_parser(name, allow_abbrev=False)
        command.add_argument("run", help="s3:// prefix, or absolute folder")
    return parser.parse_known_args(arguments)


def check_run(run: str) -> None:
    """Refuse a folder that the job would make in a directory of its own, and lose."""
    if not re.match(r"[a-z0-9]+://|/", run):
        raise ConfigError(
            f"run {run!r} is relative to the job's own folder on the cluster, which does not last: "
            "use an object store (s3://bucket/prefix), or an absolute folder that the head keeps"
        )


def check_paths(config: Config) -> None:
    """Refuse inputs that a worker would look for in the job's own folder, where they are not."""
    given = {
        "dataset.path": config.dataset.path,
        "dataset.label_map": config.dataset.label_map,
        "model.checkpoint": config.model.checkpoint,
        "model.unconditional": config.model.unconditional,
        "classifier.checkpoint": config.classifier.checkpoint,
        "sift.head": config.sift.head,
    }
    for key, value in given.items():
        if isinstance(value, str) and is_relative(value):
            raise ConfigError(
                f"{key} = {value!r} is relative: nodes would look for it in a folder of the job's "
                "own, where it is not. Give an address that every node reaches "
                "(s3://bucket/path; checkpoints are fetched once per machine), or an absolute path "
                "under which every node has it"
            )


def is_relative(value: str) -> bool:
    """Whether it is a path from the current folder, and not the name of something shipped."""
    if re.match(r"[a-z0-9]+://|/|~", value):
        return False
    return "/" in value or bool(Path(value).suffix) or Path(value).exists()


def entrypoint(options: argparse.Namespace, rest: list[str], folder: Path) -> str:
    """The job's command line; a configuration file is put into ``folder``, to be sent along."""
    check_run(options.run)
    if options.command != "certify":
        return shlex.join(["diffcert", options.command, options.run, *rest])
    check_paths(load_config(options.config, options.overrides))  # what is wrong here, is there
    config = options.config
    if Path(config).is_file():
        config = Path(shutil.copy(config, folder)).name
    settings = [part for override in options.overrides for part in ("--set", override)]
    own = ["--run", options.run, "--address", "auto", *settings, *rest]
    return shlex.join(["diffcert", "certify", config, *own])


def submitted(options: argparse.Namespace, rest: list[str]) -> tuple[JobSubmissionClient, str]:
    """Submit the job; returns the client and the job's name."""
    with tempfile.TemporaryDirectory() as folder:
        command = entrypoint(options, rest, Path(folder))
        client = JobSubmissionClient(options.cluster)
        runtime: dict[str, Any] = {"env_vars": ENVIRONMENT}
        if any(Path(folder).iterdir()):
            # Ray knows a package by its content, does not send one that it believes it has, and
            # deletes it with a job that used it: two jobs with the same configuration share none.
            (Path(folder) / "submission").write_text(secrets.token_hex(8))
            runtime["working_dir"] = folder
        about = {"command": options.command, "run": options.run}
        job = accepted(
            lambda: client.submit_job(entrypoint=command, runtime_env=runtime, metadata=about)
        )
    print(f"job {job} at {options.cluster}: {command}", flush=True)
    return client, job


def accepted(submit: Callable[[], str]) -> str:
    """Submit, again and again while a head that has just been started cannot take jobs yet."""
    limit = time.monotonic() + START_S
    while True:
        try:
            return submit()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > limit:
                raise
        time.sleep(1.0)


async def follow(client: JobSubmissionClient, job: str) -> None:
    """Print the job's log until it ends."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def exit_code(client: JobSubmissionClient, job: str) -> int:
    """What the command of an ended job returned; 1 where the job was stopped or lost."""
    limit = time.monotonic() + STATUS_S
    while not (info := client.get_job_info(job)).status.is_terminal():
        if time.monotonic() > limit:
            print(f"job {job} is still {info.status.value}, though its log has ended")
            return 1
        time.sleep(0.5)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.driver_exit_code is None:
        print(f"job {job} {info.status.value}: {info.message}")
    if info.driver_exit_code == NOT_FOUND:
        print(
            "the head has no command diffcert: start Ray there with the environment's bin folder, "
            "into which diffcert_ray is installed, on its PATH"
        )
    return info.driver_exit_code or 1


def main(arguments: list[str]) -> int:
    """Submit, follow, return the command's exit code."""
    options, rest = parsed(arguments)
    try:
        client, job = submitted(options, rest)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (ImportError, ConnectionError, RuntimeError, RayError) as error:
        if "ray[default]" in str(error):
            print(f"error: {NO_DEFAULT}", file=sys.stderr)
            return 1
        said = str(error).partition("\n")[0].rstrip(".")
        print(
            f"error: no job could be submitted to {options.cluster}: {said}. See that its port is "
            "forwarded to here, and that RAY_AUTH_MODE and the token are the cluster's",
            file=sys.stderr,
        )
        return 1
    if options.no_wait:
        return 0
    try:
        asyncio.run(follow(client, job))
    except KeyboardInterrupt:
        print(f"\nthe job goes on; ray job logs --follow {job} or ray job stop {job}")
        return 3
    return exit_code(client, job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
