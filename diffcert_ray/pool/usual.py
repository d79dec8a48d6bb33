"""The pool that a configuration asks for, unless a caller brings another."""

from typing import Any

from diffcert_ray.config.tables import Config
from diffcert_ray.pool.local import LocalPool, Pool

COMPILING = 3.0
"""Times as long may a start take where networks are compiled."""


def usual_pool(
    spec: Any, config: Config, *, local: bool = False, address: str | None = None
) -> Pool:
    """This process (``local``), or Ray's actors as [execution] says.

    Without ``address`` Ray is started here for them; else they join that cluster.
    """
    if local:
        return LocalPool(spec)
    from diffcert_ray.pool.on_ray.actors import RayPool

    execution = config.execution
    # The first worker of a node compiles, the others wait for it.
    patience = COMPILING if config.numerics.compile else 1.0
    return RayPool(
        spec,
        actors=execution.actors,
        most_actors=execution.most_actors,
        address=address,
        gpus_per_actor=execution.gpus_per_actor,
        copies=True,
        start_timeout_s=patience * execution.start_timeout_s,
        stall_timeout_s=execution.stall_timeout_s,
    )
