"""README and docs/ as pages: their size, links, tables, and the site that is built of them."""

import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import diffcert_ray

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "diffcert_ray"
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = [*TOP, *sorted(DOCS.glob("*.md"))]


def prose(page: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$|`[^`]*`", "", text, flags=re.MULTILINE)


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and mkdocs make them of plain ones."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", line.lower()).strip().replace(" ", "-") for line in headings}


def links(page: Path) -> list[str]:
    text = prose(page)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_and_anchor_of_a_page_resolves(page):
    broken = []
    for link in links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_there_are_links_to_look_at():
    assert sum(len(links(page)) for page in PAGES) > 35


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_a_page_of_docs_links_to_docs_only_and_the_readme_and_the_index_to_it(page):
    assert [link for link in links(page) if link.startswith("..")] == []
    if page.name != "index.md":
        assert f"docs/{page.name}" in links(ROOT / "README.md")
        assert page.name in links(DOCS / "index.md")


def test_the_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


def test_every_package_has_its_line_in_the_map():
    text = (DOCS / "design.md").read_text("utf-8").split("## The map")[1].split("### ")[0]
    package = Path(diffcert_ray.__file__).parent
    names = [f"{f.name}/" for f in package.iterdir() if f.is_dir() and f.name != "__pycache__"]
    names += [f.name for f in package.glob("*.py") if f.name != "__init__.py"]
    assert len(names) > 15
    (*rows,) = [line for line in text.splitlines() if line.startswith("| `")]
    assert [n for n in names if sum(f"`{n}`" in row.split(" | ")[0] for row in rows) != 1] == []
    mapped = re.findall(r"`([^`]+)`", "".join(row.split(" | ")[0] for row in rows))
    assert sorted(mapped) == sorted(names)


def test_every_public_name_is_on_the_page_of_names():
    named = re.findall(r"^::: diffcert_ray\.(\w+)$", (DOCS / "api.md").read_text("utf-8"), re.M)
    assert sorted(named) == sorted(diffcert_ray.__all__)


def test_no_row_of_the_measurements_is_longer_than_a_line():
    text = (DOCS / "measurements.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) > 80
    assert [row for row in rows if len(row) > 120] == []


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("mkdocs") and find_spec("mkdocstrings_handlers")),
    reason="mkdocs and mkdocstrings-python are not installed (extra docs)",
)
def test_the_site_is_built_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    built = {file.name for file in tmp_path.glob("*.html")} - {"404.html"}
    assert built == {f"{page.stem}.html" for page in DOCS.glob("*.md")}
    names = (tmp_path / "api.html").read_text("utf-8")
    assert "the smoothed classifier returns" in names  # docstrings, not only names


def test_every_module_is_named_in_its_package_s_line_of_the_map():
    design = (DOCS / "design.md").read_text("utf-8")
    modules = design[design.index("### The modules") : design.index("## One way")]
    for package in sorted(p for p in PACKAGE.iterdir() if (p / "__init__.py").exists()):
        (line,) = re.findall(rf"^- `{package.name}/`: (.*?)(?=^- `|\Z)", modules, re.S | re.M)
        named = set(re.findall(r"`(\w+)/?`", line))
        stems = {path.stem for path in package.rglob("*.py")} - {"__init__"}
        assert stems - named == set(), package.name


def test_the_citation_file_names_the_version_of_the_package_and_what_to_cite():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert f"version: {version}\n" in text
    assert all(paper in text for paper in ("arXiv:2402.02316", "arXiv:1902.02918"))
