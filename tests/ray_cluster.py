"""A Ray cluster of several nodes on this machine, which tests add, kill and drain."""

from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.cluster_utils import Cluster

NODE = {"object_store_memory": 100 * 2**20}


@contextmanager
def ray_cluster(address: str | None = None) -> Iterator[Cluster]:
    """A head without CPUs, at ``address``, joined; nodes that die are noticed within seconds."""
    here = {"node_ip_address": address} if address else {}
    head = Cluster(
        initialize_head=True,
        head_node_args={
            **here,
            **NODE,
            "num_cpus": 0,
            "include_dashboard": False,
            "_system_config": {
                "health_check_initial_delay_ms": 0,
                "health_check_period_ms": 500,
                "health_check_timeout_ms": 6000,  # a busy machine's raylet is not dead
                "health_check_failure_threshold": 4,
            },
        },
    )
    try:
        ray.init(address=head.address, log_to_driver=False, _node_ip_address=address)
        yield head
    finally:
        ray.shutdown()
        head.shutdown()
