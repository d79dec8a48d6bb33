"""``diffcert doctor``: see whether every machine can do what a run needs, before it starts."""

from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffcert_ray.commands.arguments import JsonOption, SetOption, complete_config
from diffcert_ray.commands.exit_codes import FAILED
from diffcert_ray.commands.screen import escaped, out, print_json
from diffcert_ray.commands.storage_options import StorageOption, with_storage_options

if TYPE_CHECKING:
    from diffcert_ray.tools.doctor import Asked, Machine

PLACE_S = 60.0


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="TOML file or preset, whose checkpoint and images are looked for",
            autocompletion=complete_config,
        ),
    ] = None,
    overrides: SetOption = None,
    run: Annotated[
        str | None, typer.Option(help="Run folder or s3:// prefix that is to be written")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help='Ray cluster to look at: "auto" or HOST:PORT')
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=1.0, help="For the answers of all nodes")] = 600.0,
    as_json: JsonOption = False,
    storage: StorageOption = None,
) -> None:
    """See whether this machine, and every node of a cluster, can do what a run needs.

    [dim]diffcert doctor digits --run runs/digits[/]
    [dim]diffcert doctor my.toml --address auto --run s3://bucket/run1[/]

    A worker is started on each node. It says its packages, device and memory, whether checkpoint,
    images and store can be reached and are the driver's, its clock, and its numerics kind. Exit
    code 1 if anything is wrong, with the node and what can be done.
    """
    from diffcert_ray.config.loading import load_config
    from diffcert_ray.tools.doctor import Asked, examine

    settings = with_storage_options(load_config(config or {}, overrides or ()), storage)
    asked = Asked(None if config is None else settings, run, settings)
    if address is None:
        from diffcert_ray.run.devices import workers_device

        driver = examine(asked, workers_device(settings.execution, local=True))
        machines, idle = {"this machine": driver}, list[str]()
    else:
        driver, machines, idle = _cluster(asked, address, timeout_s)
        machines = {"driver": driver} | machines
    if as_json:
        print_json({"machines": {n: asdict(m) for n, m in machines.items()}, "without": idle})
    else:
        _say(machines, idle)
    if any(machine.problems for machine in machines.values()):
        raise typer.Exit(FAILED)


def _cluster(
    asked: "Asked", address: str, timeout_s: float
) -> "tuple[Machine, dict[str, Machine], list[str]]":
    """The driver's machine, each node that takes workers, and the nodes that take none."""
    from diffcert_ray.pool.on_ray.every_node import on_every_node
    from diffcert_ray.run.devices import gpus_of_a_worker, workers_device
    from diffcert_ray.tools.doctor import Machine, Problem, compared, examine

    execution = asked.settings.execution
    device = workers_device(execution, address=address)
    driver = examine(asked, device, works=False)
    answers = on_every_node(
        partial(examine, asked, device),
        address=address,
        gpus=gpus_of_a_worker(execution, device),
        place_s=PLACE_S,
        work_s=timeout_s,
    )
    working = [a for a in answers if a.takes_workers]
    found, failed = {}, {}
    for answer in working:
        name = f"{answer.address} ({answer.node[:8]})"
        if isinstance(answer.value, Machine):
            found[name] = (answer.value, answer.ahead_s)
        else:
            said = " ".join(str(answer.value).split())
            problem = Problem("worker", said, "see that the node has the driver's packages")
            failed[name] = Machine(answer.address, {}, problems=(problem,))
    nodes = dict(zip(found, compared(driver, list(found.values())), strict=True))
    idle = [f"{a.address} ({a.node[:8]})" for a in answers if not a.takes_workers]
    return driver, nodes | failed, idle


def _say(machines: "dict[str, Machine]", idle: list[str]) -> None:
    for name, machine in machines.items():
        out.print(f"[bold]{escaped(name)}[/]  {escaped(machine.name)}", soft_wrap=True)
        for what, said in _facts(machine):
            out.print(f"  {what:<11}{escaped(said)}", soft_wrap=True)
        for problem in machine.problems:
            out.print(f"  [bold red]problem:[/] {escaped(str(problem))}", soft_wrap=True)
    for name in idle:
        out.print(f"{escaped(name)} has no room for a worker", soft_wrap=True)
    kinds = Counter(m.numerics for m in machines.values() if m.numerics)
    if len(kinds) > 1:
        each = ", ".join(f"{kind} on {count}" for kind, count in sorted(kinds.items()))
        out.print(
            f"{len(kinds)} numerics kinds ({each}): rare votes depend on the node; each is noted"
        )
    wrong = sum(bool(machine.problems) for machine in machines.values())
    nodes = "1 machine" if len(machines) == 1 else f"{len(machines)} machines"
    out.print(f"{nodes}, " + (f"{wrong} with problems" if wrong else "no problem"))


def _facts(machine: "Machine") -> list[tuple[str, Any]]:
    """What there is to say, line by line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    facts = [("packages", versions)]
    if machine.device:
        memory = f"{machine.free_gib:,.1f} GiB for a worker"
        facts.append(("device", f"{machine.device}, {memory}"))
    for role, sha256 in machine.weights.items():
        facts.append(("checkpoint", f"{role} {sha256[:12]}..."))
    if machine.images:
        facts.append(("data", f"{machine.images:,} images, {machine.fingerprint[:12]}..."))
    if machine.store:
        facts.append(("store", f"{machine.store} can be written"))
    if machine.numerics:
        facts.append(("numerics", machine.numerics))
    return [fact for fact in facts if fact[1]]
