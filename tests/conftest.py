"""Settings of every test process: one torch thread, Ray without tokens, no usage reports."""

import os

os.environ.update(
    {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # At Ray's own niceness of 15 a busy machine starves its workers, and tests time out.
        "RAY_worker_niceness": "0",
    }
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
