"""Settings of every test process: one torch thread, Ray without tokens, no usage reports."""

import os

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = (
    "0"  # at Ray's 15 a busy machine starves them, and tests time out
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
