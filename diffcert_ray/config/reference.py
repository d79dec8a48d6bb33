"""The configuration reference, made from the code: Markdown, and a JSON schema for editors."""

import json
import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from diffcert_ray.config.loading import table_of
from diffcert_ray.config.tables import Config
from diffcert_ray.config.training_tables import ClassifierTraining, DenoiserTraining


def markdown(model: type[BaseModel] = Config, without: tuple[str, ...] = ()) -> str:
    """Every key of every table with its values, default and meaning, as Markdown tables.

    Args:
        model: the configuration, by default a run's.
        without: keys at its top, and tables, that are left out.
    """
    fields = {k: f for k, f in model.model_fields.items() if k not in without}
    top = {k: f for k, f in fields.items() if table_of(f.annotation) is None}
    parts = [_table("", "These keys stand at the top of the file.", top)] if top else []
    for name, field in fields.items():
        if (table := table_of(field.annotation)) is not None:
            about = " ".join((table.__doc__ or "").replace("``", "`").split())
            parts.append(_table(f"`[{name}]`: ", about, table.model_fields))
    return "\n".join(parts)


def training_markdown() -> str:
    """The same of the configurations of `diffcert train` and `diffcert train-classifier`."""
    classifiers = markdown(ClassifierTraining, without=("name", "dataset", "validation"))
    return (
        f"{markdown(DenoiserTraining)}\nFor `diffcert train-classifier` name, dataset and "
        f"validation are the same, and beside them stand:\n\n{classifiers}"
    )


def json_schema() -> str:
    """The JSON schema of a configuration, for editors that complete and check TOML."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


def _table(heading: str, about: str, fields: dict[str, FieldInfo]) -> str:
    lines = [f"{heading}{about}", "", "| key | values | default | meaning |", "|---|---|---|---|"]
    for key, field in fields.items():
        meaning = " ".join((field.description or "").split()).replace("|", "\\|")
        default = (
            "" if field.default is None else _toml(field.get_default(call_default_factory=True))
        )
        lines.append(f"| `{key}` | {_values(field)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        shown = (f'"{v}"' if isinstance(v, str) else f"{v:g}" for v in value)
        return f"`[{', '.join(shown)}]`"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{value}`"


def _values(field: FieldInfo) -> str:
    """Type and range in a few words."""
    limits = [re.sub(r"^(\w+)\((.*)\)$", r"\2", repr(m)) for m in field.metadata]
    words = {"gt=": "> ", "ge=": ">= ", "lt=": "< ", "le=": "<= "}
    shown = []
    for limit in ", ".join(limits).split(", "):
        for prefix, word in words.items():
            if limit.startswith(prefix):
                shown.append(word + limit.removeprefix(prefix))
    return f"{_name(field.annotation)}{' ' if shown else ''}{', '.join(shown)}".replace("|", "\\|")


def _name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_name(a) for a in arguments if a is not NoneType)
    if origin is tuple:
        inner = _name(arguments[0])
        return (
            f"list of {inner}" if arguments[-1] is Ellipsis else f"list of {len(arguments)} {inner}"
        )
    if origin is dict:
        return "table"
    if hasattr(annotation, "__metadata__"):  # Annotated
        return _name(arguments[0])
    names = {str: "text", int: "integer", float: "number", bool: "true, false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
