"""The tower of packages: read from the import contract and the code, drawn from top to bottom."""

import ast
import tomllib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import wrap

from matplotlib.figure import Figure
from picture_canvas import SMALL, Canvas, Drawing, Theme


@dataclass(frozen=True)
class Module:
    """A package, its one sentence, and its modules without ``__init__`` (0: it is one itself)."""

    name: str
    about: str
    modules: int


Layer = tuple[Module, ...]


def layers(root: Path) -> tuple[Layer, ...]:
    """The tower from top to bottom: each layer holds the packages that import only lower ones."""
    settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    (tower,) = (c["layers"] for c in settings["contracts"] if c["type"] == "layers")
    folder = root / settings["root_package"]
    return tuple(
        tuple(module_of(folder, name.strip()) for name in layer.split("|")) for layer in tower
    )


def module_of(folder: Path, name: str) -> Module:
    """A package, or a module beside them, with the first line of its docstring."""
    package = folder / name
    first = package / "__init__.py" if package.is_dir() else package.with_suffix(".py")
    about = ast.get_docstring(ast.parse(first.read_text("utf-8"))) or ""
    inside = [path for path in package.rglob("*.py") if path.name != "__init__.py"]
    return Module(name, about.splitlines()[0] if about else "", len(inside))


def packages_drawing(layers: tuple[Layer, ...]) -> Drawing:
    """The packages from top to bottom."""
    names = ", ".join(module.name for layer in layers for module in layer)
    alt = f"The packages as a tower, each of which imports only from those below it: {names}."
    return Drawing("packages", alt, partial(_packages, layers))


def _packages(layers: tuple[Layer, ...], theme: Theme) -> Figure:
    row, gap, top = 41, 5, 84
    rows = sum(len(layer) for layer in layers)
    canvas = Canvas.of(theme, top + rows * row + (len(layers) - 1) * gap + 16)
    canvas.title("The packages: imports only go down")
    canvas.text(676, 66, "modules", ha="right", color=theme.muted, fontsize=SMALL)
    y = top
    for layer in layers:
        canvas.box(20, y, 660, row * len(layer))
        for module in layer:
            _package(canvas, y + row / 2, module)
            y += row
        y += gap
    return canvas.figure


def _package(canvas: Canvas, y: float, module: Module) -> None:
    canvas.text(34, y, module.name, weight="bold", color=canvas.theme.winner)
    lines = _even_lines(module.about, 54)
    for index, said in enumerate(lines):
        canvas.text(172, y + 17.5 * (index - (len(lines) - 1) / 2), said, fontsize=11)
    canvas.text(668, y, str(module.modules or "1"), ha="right", weight="bold")


def _even_lines(said: str, width: int) -> list[str]:
    """As few lines as fit the width, each about as long as the others."""
    count = len(wrap(said, width))
    tried = (wrap(said, w, break_long_words=False) for w in range(1, width + 1))
    return next(lines for lines in tried if len(lines) <= count)
