"""The pool that a configuration asks for, unless a caller brings another."""

from typing import Any

from diffcert_ray.config.tables import Config
from diffcert_ray.pool.local import LocalPool, Pool


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
    return RayPool(
        spec,
        actors=execution.actors,
        most_actors=execution.most_actors,
        address=address,
        gpus_per_actor=execution.gpus_per_actor,
        start_timeout_s=execution.start_timeout_s,
        stall_timeout_s=execution.stall_timeout_s,
    )
