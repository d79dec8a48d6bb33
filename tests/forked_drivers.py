"""Drivers in forked processes, to be killed: a fork needs no import, and dies without clean-up."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffcert_ray.config.tables import Config
from diffcert_ray.pool.local import Pool
from diffcert_ray.run import loop as run
from diffcert_ray.run.certify import MakePool
from diffcert_ray.storage import local_folder

POINTS = ("result", "half a file", "before the name", "after the name", "moment")


def forked(body: Callable[[], None], log: Path) -> int:
    """Run ``body`` in a fork of this process, its output in ``log``; returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(0)  # of a test's own time limit
        with log.open("ab", 0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # pytest's own objects would keep what is printed to themselves.
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, closefd=False) for n in (1, 2))
        body()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        raise
    finally:
        os._exit(code)


def ended(pid: int, limit_s: float) -> int:
    """Wait for a process; its exit code, or minus the signal that ended it."""
    until = time.monotonic() + limit_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"process {pid} did not end in {limit_s:g} s")
        time.sleep(0.01)


def small_items(nfe: float) -> None:
    """In this process, let the first item of a driver be small, as the others are."""
    run.FIRST_ITEM_NFE = nfe


def dying_at(point: str, rng: random.Random, make: MakePool) -> MakePool:
    """Arrange a SIGKILL of this process at one of POINTS; "moment" is the parent's business.

    Returns the pools of ``make``, whose results may be the last that is seen of it.
    """
    left = rng.randint(1, 3)

    def due() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    if point == "result":
        return _dying_with_results(due, make)
    if point == "half a file":
        write = local_folder.write_durably

        def write_half(path: Path, data: bytes) -> None:
            if path.parent.name in ("units", "certificates") and due():
                path.write_bytes(data[: rng.randrange(len(data))])
                _die()
            write(path, data)

        local_folder.write_durably = write_half
    elif point in ("before the name", "after the name"):
        link = local_folder.link_new

        def link_and_die(temporary: Path, target: Path) -> bool:
            last = target.parent.name in ("units", "certificates") and due()
            if last and point == "before the name":
                _die()
            made = link(temporary, target)
            if last:
                _die()
            return made

        local_folder.link_new = link_and_die
    return make


def _dying_with_results(due: Callable[[], bool], make: MakePool) -> MakePool:
    """Die with results in hand that nothing has been done with."""

    def made(spec: Any, config: Config) -> Pool:
        pool = make(spec, config)
        collect = pool.collect

        def collect_and_die(timeout_s: float) -> list[Any]:
            results = collect(timeout_s)
            if results and due():
                _die()
            return results

        pool.collect = collect_and_die
        return pool

    return made


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
