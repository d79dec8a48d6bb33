"""The configuration reference says what the code does, and docs/configuration.md says the same."""

import json
import tomllib
from importlib import resources
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from diffcert_ray.commands.main import app
from diffcert_ray.config.loading import presets, table_of
from diffcert_ray.config.reference import json_schema, markdown, training_markdown
from diffcert_ray.config.tables import Config
from diffcert_ray.config.training_tables import ClassifierTraining, DenoiserTraining

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
TRAINING_PAGE = PAGE.with_name("training.md")


def tables(model: type[BaseModel] = Config) -> dict[str, type[BaseModel]]:
    found = {name: table_of(field.annotation) for name, field in model.model_fields.items()}
    return {name: table for name, table in found.items() if table is not None}


@pytest.mark.parametrize("table", tables())
def test_every_key_has_a_meaning_and_a_line(table):
    lines = markdown().split(f"`[{table}]`: ")[1].split("\n\n`[")[0].splitlines()
    for key, field in tables()[table].model_fields.items():
        assert field.description, key
        (line,) = [line for line in lines if line.startswith(f"| `{key}` |")]
        assert " ".join(field.description.split()) in line


def test_every_meaning_is_made_of_whole_sentences():
    tops = (Config, DenoiserTraining, ClassifierTraining)
    models = (*tops, *(table for top in tops for table in tables(top).values()))
    texts = [table.__doc__ or "" for table in models if table not in tops]
    texts += [f.description for m in models for f in m.model_fields.values() if f.description]
    for text in texts:
        assert text.rstrip().endswith(".")
        assert len(text.split()) >= 5, text  # "Of all noise." is none


def test_ranges_choices_and_defaults_are_shown():
    text = markdown()
    assert "| `alpha` | number > 0, < 1 | `0.001` |" in text
    assert "| `levels` | integer >= 1, <= 4096 | `126` |" in text
    assert '| `stages` | `split`, `fused` | `"fused"` |' in text


@pytest.mark.parametrize("model", [DenoiserTraining, ClassifierTraining])
def test_every_key_of_a_training_has_a_meaning_and_a_line(model):
    lines = [line for line in training_markdown().splitlines() if line.startswith("| `")]
    for table in (model, *tables(model).values()):
        for key, field in table.model_fields.items():
            if key not in tables(model):
                assert field.description, key
                meaning = " ".join(field.description.split())
                assert any(line.startswith(f"| `{key}` |") and meaning in line for line in lines)


def test_the_page_of_trainings_holds_their_reference():
    text = TRAINING_PAGE.read_text("utf-8")
    held = text.split("<!-- training:begin -->\n")[1].split("<!-- training:end -->")[0]
    assert held == training_markdown()


def test_its_page_holds_the_reference():
    text = PAGE.read_text("utf-8")
    held = text.split("<!-- config:begin -->\n")[1].split("<!-- config:end -->")[0]
    assert held == markdown()


def test_the_schema_knows_every_key_of_every_preset():
    schema = json.loads(json_schema())
    for preset in presets():
        path = resources.files("diffcert_ray") / "presets" / f"{preset}.toml"
        for name, value in tomllib.loads(path.read_text("utf-8")).items():
            where = schema["properties"][name]
            if isinstance(value, dict):
                where = schema["$defs"][where["$ref"].rpartition("/")[2]]
                assert set(value) <= set(where["properties"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], markdown), (["--json-schema"], json_schema), (["--training"], training_markdown)],
)
def test_the_command_prints_it(arguments, expected):
    found = CliRunner().invoke(app, ["config", *arguments])
    assert (found.exit_code, found.output) == (0, expected())
