"""model.config: what a checkpoint does not say of itself, and what votes depend on of it."""

import json

import pytest
import torch

from diffcert_ray import certify, load_denoiser, open_run
from diffcert_ray.checkpoints.files import read_metadata
from diffcert_ray.config.identity import canonical_hash, votes_identity
from diffcert_ray.config.loading import load_config
from diffcert_ray.config.model_files import model_files
from diffcert_ray.errors import CheckpointError, ConfigError
from diffcert_ray.run.preflight import check_plan
from diffcert_ray.run.verify import verify_run
from tests.worlds import counts_of

TINY = {
    "dataset": {"first": 2},
    "votes": {"n0": 2, "n": 4, "unit": 4, "radii": [0.0]},
    "noise_levels": {"levels": 6},
    "numerics": {"batch": 16},
}


@pytest.fixture
def bare(tmp_path):
    """The digits model as a state dict that says nothing of itself, and what it should have said.

    The published shapes are others, and the tensors do not tell that "no class" was trained.
    """
    network = tmp_path / "network.pt"
    torch.save(load_denoiser("digits").state_dict(), network)
    about = tmp_path / "elsewhere" / "about.json"
    about.parent.mkdir()
    about.write_text(json.dumps(read_metadata("digits")["configuration"]))
    return network, about


def tables(network, settings=None):
    model = {"checkpoint": str(network)} | ({} if settings is None else {"config": settings})
    return TINY | {"model": model}


def votes_id(config):
    return canonical_hash(votes_identity(load_config(config), {"denoiser": "ab"}))


def test_a_state_dict_with_its_configuration_named_casts_the_votes_of_the_full_file(bare, tmp_path):
    network, about = bare
    with pytest.raises(CheckpointError, match="no complete configuration"):
        certify(tables(network), tmp_path / "none", local=True)
    run = certify(tables(network, str(about)), tmp_path / "run", local=True)
    assert counts_of(run) == counts_of(certify(TINY, tmp_path / "shipped", local=True))
    about.unlink()  # the run says it itself
    assert verify_run(open_run(tmp_path / "run"), sample=2).differences == []


def test_a_run_refuses_other_settings_of_the_same_weights(bare, tmp_path):
    network, about = bare
    certify(tables(network, str(about)), tmp_path / "run", local=True)
    other = json.loads(about.read_text()) | {"sigma_data": 0.7}
    with pytest.raises(ConfigError, match=r"weights\.denoiser\.sigma_data: run 0\.5, now 0\.7"):
        certify(tables(network, other), tmp_path / "run", local=True)


def test_the_votes_id_depends_on_what_is_said_and_not_on_where(bare):
    network, about = bare
    settings = json.loads(about.read_text())
    told = votes_id(tables(network, str(about)))
    assert told == votes_id(tables("elsewhere.pt", dict(reversed(settings.items()))))
    assert told == votes_id(tables(network, settings | {"dropout": 0.1, "s_range": [0.01, 50.0]}))
    assert told != votes_id(tables(network, settings | {"sigma_data": 0.7}))
    assert told != votes_id(tables(network))
    assert votes_id(tables(network)) == votes_id(TINY)  # nothing said: the id of before


def test_each_network_of_a_run_has_its_own_settings():
    model = {
        "checkpoint": "a", "config": {"sigma_data": 0.1}, "sha256": "01",
        "unconditional": "b", "unconditional_config": {"sigma_data": 0.2},
        "unconditional_sha256": "02",
    }  # fmt: skip

    def found(method):
        files = model_files(load_config({"model": model, "method": {"name": method}})).items()
        return {r: (f.source, f.sha256, f.sha256_key, dict(f.settings)) for r, f in files}

    own = ("a", "01", "model.sha256", {"sigma_data": 0.1})
    other = ("b", "02", "model.unconditional_sha256", {"sigma_data": 0.2})
    assert found("apndc") == {"denoiser": own, "unconditional": other}
    assert found("denoise-classify") == {"denoiser": other}
    assert found("classify") == {}


@pytest.mark.parametrize("text", ["[1, 2]", "{", None])
def test_a_file_that_holds_no_settings_is_refused(tmp_path, text):
    path = tmp_path / "about.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=r"model\.config is '.*about\.json'.*JSON"):
        load_config(tables("digits", str(path)))


def test_settings_that_no_network_has_are_refused():
    from diffcert_ray.datasets import load_dataset
    from diffcert_ray.run.plan import plan_of

    config = load_config(tables("digits", {"colour": "blue"}))
    data = load_dataset(config.dataset)
    with pytest.raises(CheckpointError, match="colour"):
        check_plan(config, plan_of(config, data), data)
    with pytest.raises(ConfigError, match=r"unconditional_config is given, but no model\.uncond"):
        load_config({"model": {"unconditional_config": {}}})
