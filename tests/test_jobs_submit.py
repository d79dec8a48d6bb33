"""What the job script sends to a cluster, decided before any connection."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import AuthenticationError

from diffcert_ray.errors import ConfigError
from jobs import submit
from jobs.submit import entrypoint, main, parsed


def command(tmp_path: Path, *arguments: str) -> list[str]:
    options, rest = parsed(list(arguments))
    return shlex.split(entrypoint(options, rest, tmp_path))


def test_configuration_file_is_sent_along_and_options_go_to_diffcert(tmp_path: Path):
    config, folder = tmp_path / "my run.toml", tmp_path / "sent"
    config.write_text('name = "mine"')
    folder.mkdir()
    said = command(
        folder, "certify", str(config), "--run", "s3://bucket/run1",
        "--set", "votes.n=500", "--images", "0:50", "--set", 'model.checkpoint="a b"',
    )  # fmt: skip
    assert said[:3] == ["diffcert", "certify", "my run.toml"]
    assert (folder / "my run.toml").read_text() == 'name = "mine"'
    assert said[3:] == [
        "--run", "s3://bucket/run1", "--address", "auto",
        "--set", "votes.n=500", "--set", 'model.checkpoint="a b"', "--images", "0:50",
    ]  # fmt: skip


def test_same_configuration_is_sent_again_with_each_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What one job has sent goes with that job, also while another is being submitted."""
    sent = []

    class Client:
        def __init__(self, address: str) -> None: ...

        def submit_job(self, *, runtime_env: dict, **_: object) -> str:
            files = sorted(Path(runtime_env["working_dir"]).iterdir())
            sent.append({file.name: file.read_bytes() for file in files})
            return "job"

    monkeypatch.setattr(submit, "JobSubmissionClient", Client)
    config = tmp_path / "my.toml"
    config.write_text('name = "mine"')
    for _ in range(2):
        assert main(["--no-wait", "certify", str(config), "--run", "s3://bucket/run1"]) == 0
    first, second = sent
    assert first["my.toml"] == second["my.toml"] == b'name = "mine"'
    assert first != second


def test_head_that_takes_no_jobs_yet_is_asked_again(monkeypatch: pytest.MonkeyPatch):
    answers = ["No available agent to submit job, please try again later."] * 2
    waited = []
    monkeypatch.setattr(submit, "time", SimpleNamespace(sleep=waited.append, monotonic=lambda: 0.0))

    def submitted() -> str:
        if answers:
            raise RuntimeError(answers.pop())
        return "job"

    assert submit.accepted(submitted) == "job"
    assert len(waited) == 2
    answers.append("Request failed with status code 401: wrong token")
    with pytest.raises(RuntimeError, match="401"):
        submit.accepted(submitted)
    answers += ["No available agent"] * 2
    monkeypatch.setattr(submit, "START_S", -1.0)
    with pytest.raises(RuntimeError, match="No available agent"):
        submit.accepted(submitted)
    assert len(answers) == 1


def test_preset_needs_no_file(tmp_path: Path):
    said = command(tmp_path, "certify", "digits", "--run", "/shared/run")
    assert said == ["diffcert", "certify", "digits", "--run", "/shared/run", "--address", "auto"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["status", "report", "verify", "compact"])
def test_other_commands_need_the_store_only(name: str, tmp_path: Path):
    assert command(tmp_path, name, "s3://bucket/run1") == ["diffcert", name, "s3://bucket/run1"]


def test_run_in_the_jobs_own_folder_is_refused_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(ConfigError, match=r"'runs/a' is relative.*s3://"):
        command(tmp_path, "certify", "digits", "--run", "runs/a")
    assert main(["status", "runs/a"]) == 2
    assert "s3://" in capsys.readouterr().err


def test_wrong_configuration_is_refused_before_it_is_sent(tmp_path: Path):
    with pytest.raises(ConfigError, match="votes"):
        command(tmp_path, "certify", "digits", "--run", "s3://b/r", "--set", "votes.m=5")


def test_cluster_that_is_not_there_is_named_with_the_remedy(capsys: pytest.CaptureFixture[str]):
    nobody = "http://127.0.0.1:9"  # the discard port
    assert main(["--cluster", nobody, "status", "s3://bucket/run1"]) == 1
    said = capsys.readouterr().err
    assert nobody in said
    assert "RAY_AUTH_MODE" in said


def test_wrong_token_is_one_line_with_the_remedy(monkeypatch, capsys: pytest.CaptureFixture[str]):
    def refuse(address: str) -> None:
        raise AuthenticationError("Authentication failed: Forbidden\nToken ... is invalid.")

    monkeypatch.setattr(submit, "JobSubmissionClient", refuse)
    assert main(["status", "s3://bucket/run"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "Authentication failed: Forbidden" in line
    assert "the token are the cluster's" in line


def test_head_without_the_command_is_told_what_its_path_needs(capsys: pytest.CaptureFixture[str]):
    ended = SimpleNamespace(status=submit.JobStatus.FAILED, driver_exit_code=127, message="")
    client = SimpleNamespace(get_job_info=lambda job: ended)
    assert submit.exit_code(client, "job") == 127
    assert "environment's bin folder" in capsys.readouterr().out


def certify_command(*settings: str) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    return ["certify", "digits", "--run", "s3://bucket/run1", *sets]


@pytest.mark.parametrize(
    "setting",
    [
        "model.checkpoint=models/mine.pkl",
        "model.checkpoint=mine.safetensors",
        "model.unconditional=./other.pt",
        "sift.head=heads/mine.safetensors",
        "dataset.path=data/cifar",
        "dataset.label_map=map_clsloc.txt",
        "classifier.checkpoint=../net.pt",
    ],
)
def test_relative_path_of_an_input_is_refused_with_the_remedy(tmp_path: Path, setting: str):
    key, _, value = setting.partition("=")
    with pytest.raises(ConfigError) as caught:
        command(tmp_path, *certify_command(setting))
    assert f"{key} = {value!r} is relative" in str(caught.value)
    assert "s3://bucket/path" in str(caught.value)
    assert "absolute path under which every node has it" in str(caught.value)


def test_folder_beside_the_command_is_relative_however_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert command(tmp_path, *certify_command("model.checkpoint=mine"))  # a name, wrong or right
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="is relative"):
        command(tmp_path, *certify_command("model.checkpoint=mine"))


def test_shipped_names_absolute_paths_and_addresses_are_sent(tmp_path: Path):
    for checkpoint in ("digits", "/data/mine.pkl", "~/mine.pkl", "s3://bucket/mine.pkl"):
        assert command(tmp_path, *certify_command(f"model.checkpoint={checkpoint}"))


@pytest.mark.parametrize("kind", [RuntimeError, ImportError])
def test_missing_extras_of_ray_are_named_and_not_the_port(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def client(address: str) -> None:
        raise kind("The Ray jobs CLI & SDK require the ray[default] installation: `pip install`")

    monkeypatch.setattr(submit, "JobSubmissionClient", client)
    assert main(["--no-wait", "status", "s3://bucket/run1"]) == 1
    said = capsys.readouterr().err
    assert "pip install 'diffcert_ray[cluster]'" in said
    assert "on this machine and on the head" in said
    assert "port" not in said
