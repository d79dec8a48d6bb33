"""Public functions say what their arguments are; the public names also units, errors, source."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

import diffcert_ray
from diffcert_ray.storage.schemas import CERTIFICATE_SCHEMA, LOSS_SCHEMA, UNIT_SCHEMA

PACKAGE = Path(diffcert_ray.__file__).parent
FEW = 2
"""Up to so many arguments the first sentence may say what they are, in other words."""
COMMANDS = "commands/"
"""Their arguments are explained by --help, which another test looks at."""
MATHS = ("certificates/", "method/", "denoisers/")
"""Where every argument is said: shapes, units and ranges are what a reader comes for. Elsewhere a
docstring of one sentence is enough, with sections where name and type leave a question."""

UNITS = {
    "sigma": "pixel units|pixels in",
    "radius": "pixel units",
    "radii": "pixel units",
    "alpha": r"\(0, 1\)",
    "p_low": r"\[0, 1\]",
    "image": r"\[0, 1\]",
    "images": r"\[0, 1\]|start:stop",
    "u": "model space",
    "n": "votes",
    "draws": "noise",
}
"""What the description of a public argument or field of that name has to say."""

COLUMNS = {field.name for s in (CERTIFICATE_SCHEMA, LOSS_SCHEMA, UNIT_SCHEMA) for field in s}
"""The rows' fields, whose meaning the schemas hold."""

NO_SOURCE = {
    "Certificate": "what `certificate` returns, which has it",
    "Classifier": "the module classifier.py has a source for each method",
    "Classifier.logits": "as the class",
    "Dataset": "images and labels",
    "Dataset.image": "as the class",
    "Dataset.image_sha": "as the class",
    "Dataset.position": "as the class",
    "Run": "a stored run",
    "Run.table": "reads files",
    "certify": "the bounds have theirs; it runs them",
    "load_dataset": "reads files",
    "load_denoiser": "reads files",
    "open_run": "reads files",
    "Classifier.votes": "the class names the methods",
}
"""Public names that state nothing which a paper or a derivation has to carry."""


@dataclass(frozen=True)
class Documented:
    """A function or class: where it is, its arguments (or fields), and its docstring."""

    where: str
    arguments: tuple[str, ...]
    text: str
    returns: bool
    raises: bool


def documented(node: ast.FunctionDef | ast.AsyncFunctionDef, where: str) -> Documented:
    given = node.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [a.arg for a in (given.vararg, given.kwarg) if a is not None]
    returns = node.returns is not None and ast.unparse(node.returns) not in (
        "None",
        "Iterator[None]",
    )
    raises = any(isinstance(n, ast.Raise) for n in ast.walk(node))
    kept = tuple(n for n in names if n not in ("self", "cls") and not n.startswith("_"))
    return Documented(where, kept, ast.get_docstring(node) or "", returns, raises)


def undescribed_fields(node: ast.ClassDef) -> Iterator[str]:
    """Fields of a dataclass that its constructor takes and that have no docstring of their own."""
    for field, after in pairwise([*node.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            made = field.value is not None and "init=False" in ast.unparse(field.value)
            own = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if not (made or own or field.target.id.startswith("_")):
                yield field.target.id


def of_class(node: ast.ClassDef, where: str) -> Iterator[Documented]:
    """The class with its constructor's arguments or its fields, then its public methods."""
    decorators = {ast.unparse(d) for d in node.decorator_list}
    starts = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    arguments = documented(starts[0], where).arguments if starts else ()
    if any("dataclass" in d for d in decorators):
        arguments = tuple(undescribed_fields(node))
    yield Documented(where, arguments, ast.get_docstring(node) or "", False, False)
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
            decorators = {ast.unparse(d) for d in method.decorator_list}
            if not decorators & {"override", "typing.override"}:
                yield documented(method, f"{where}.{method.name}")


@cache
def everything() -> list[Documented]:
    found: list[Documented] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(COMMANDS):
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found.append(documented(node, f"{name}:{node.name}"))
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found += of_class(node, f"{name}:{node.name}")
    return found


def section(text: str, *names: str) -> str:
    """A google-style section of a docstring, without its heading."""
    found = re.search(
        rf"^(?:{'|'.join(names)}):[ \n](.*?)(?=^\S|\Z)", text, re.DOTALL | re.MULTILINE
    )
    return found[1] if found else ""


def described(text: str) -> dict[str, str]:
    """Argument -> what the docstring says of it; "a, b: ..." describes both."""
    found: dict[str, str] = {}
    items = re.split(r"^    (?=\S)", section(text, "Args", "Attributes"), flags=re.MULTILINE)
    for item in items:
        names, colon, about = item.partition(": ")
        if colon:
            found |= dict.fromkeys(re.split(r"[,\s]+", names.strip().replace("*", "")), about)
    return found


def explained_names() -> set[str]:
    """Public names but the number and the errors, whose one sentence says all."""
    return {n for n in diffcert_ray.__all__ if n != "ABSTAIN" and not n.endswith("Error")}


def public() -> list[Documented]:
    """What the names in ``__all__`` are: functions, classes and the classes' public methods."""
    names = explained_names()
    modules = {n: diffcert_ray._WHERE[n].replace(".", "/") for n in names}
    modules |= {"load_dataset": "datasets/loading", "Dataset": "datasets/dataset"}
    wanted = tuple(f"{modules[n]}.py:{n}" for n in names)
    return [d for d in everything() if d.where.partition(".py:")[2].partition(".")[0] in names
            and d.where.startswith(wanted)]  # fmt: skip


def short(one: Documented) -> str:
    return one.where.partition(":")[2]


REFERRED = re.compile(r"As `\w+\.\w+`")
"""How a method says that a protocol describes it."""


def missing(one: Documented) -> list[str]:
    """Arguments that the docstring neither describes nor names."""
    if REFERRED.match(one.text):
        return []
    known = set(described(one.text))
    if one.where.startswith("storage/schemas.py") and one.where.endswith("Row"):
        known |= COLUMNS
    return [a for a in one.arguments if a not in known and not re.search(rf"\b{a}\b", one.text)]


def test_every_function_and_class_has_a_docstring_and_the_maths_says_what_it_takes():
    gaps = []
    for one in everything():
        if not one.text:
            gaps.append(f"{one.where} has no docstring")
        elif one.where.startswith(MATHS) and len(one.arguments) > FEW and missing(one):
            gaps.append(f"{one.where} does not say what {', '.join(missing(one))} is")
    assert gaps == []


def test_no_docstring_describes_an_argument_that_is_not_there():
    gaps = []
    for one in everything():
        extra = set(described(one.text)) - set(one.arguments)
        if extra and section(one.text, "Args") and one.arguments:
            gaps.append(f"{one.where} describes {', '.join(sorted(extra))}")
    assert gaps == []


def test_all_public_names_are_looked_at():
    assert {short(one).partition(".")[0] for one in public()} == explained_names()


@pytest.mark.parametrize("one", public(), ids=short)
def test_a_public_name_says_arguments_units_results_errors_and_source(one):
    about = described(one.text)
    assert set(one.arguments) <= set(about)
    for name in set(one.arguments) & set(UNITS):
        assert re.search(UNITS[name], about[name]), f"{name}: {about[name]!r} lacks {UNITS[name]}"
    if one.returns and len(one.arguments):
        assert section(one.text, "Returns"), "no Returns:"
    if one.raises:
        assert section(one.text, "Raises"), "no Raises:"
    if one.arguments and short(one) not in NO_SOURCE:
        assert section(one.text, "Source"), "no Source:, nor a reason in NO_SOURCE"
