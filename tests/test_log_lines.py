"""Log lines name their run and stay one line each."""

import io
import logging
import re
from collections.abc import Iterator

import pytest

from diffcert_ray.commands.log_lines import log_to, name_run

LINE = re.compile(r"(\S+\+00:00) (\w+) (\S+) run=(\S+) (.+)")


@pytest.fixture(autouse=True)
def same_logging() -> Iterator[None]:
    """Handlers and levels are put back afterwards."""
    root, package = logging.getLogger(), logging.getLogger("diffcert_ray")
    handlers, levels = root.handlers[:], (root.level, package.level)
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(levels[0])
    package.setLevel(levels[1])


def fields(stream: io.StringIO) -> list[tuple[str, ...]]:
    return [LINE.fullmatch(line).groups()[1:] for line in stream.getvalue().splitlines()]


def test_lines_name_time_level_module_run_and_event():
    stream = io.StringIO()
    log_to(stream, level="INFO")
    pool = logging.getLogger("diffcert_ray.pool.on_ray.actors")
    pool.info("live actor=%s", "actor-1")
    name_run("208f05966da1eefb")
    pool.warning("lost actor=actor-1 error=%r", "node died")
    assert fields(stream) == [
        ("INFO", "diffcert_ray.pool.on_ray.actors", "-", "live actor=actor-1"),
        (
            "WARNING", "diffcert_ray.pool.on_ray.actors", "208f05966da1eefb",
            "lost actor=actor-1 error='node died'",
        ),
    ]  # fmt: skip


def test_event_of_several_lines_stays_on_one():
    stream = io.StringIO()
    log_to(stream)
    logging.getLogger("diffcert_ray.run.loop").warning("first\nrun=forged second")
    assert [f[-1] for f in fields(stream)] == ["first run=forged second"]


def test_other_packages_are_quiet_below_warning_unless_asked_for():
    quiet, loud = io.StringIO(), io.StringIO()
    log_to(quiet, level="INFO")
    logging.getLogger("botocore").info("found credentials")
    logging.getLogger("botocore").warning("throttled")
    assert [f[0] for f in fields(quiet)] == ["WARNING"]
    log_to(loud, level="INFO", all_libraries=True)
    logging.getLogger("botocore").info("found credentials")
    assert [f[0] for f in fields(loud)] == ["INFO"]


def test_unknown_level_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'LOUD' is unknown.*INFO"):
        log_to(io.StringIO(), level="LOUD")
