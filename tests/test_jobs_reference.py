"""The job that times the reference's way: its votes are full votes, its table is complete."""

import argparse

import numpy as np
import pytest
import torch

from diffcert_ray.datasets import load_dataset
from jobs.reference_cost import PAPER, measured, reference_classifier, reference_vote, smallest_n


def test_the_references_way_is_the_full_vote_on_the_papers_grid():
    base = reference_classifier()
    assert 1 + len(base.plan.s) * base.denoiser.num_classes == 1241
    assert PAPER["sift"] == {"rule": "full"}
    data = load_dataset({"name": "digits", "split": "test", "first": 6})
    votes = [
        reference_vote(base, data.image(int(i)), torch.Generator().manual_seed(int(i)))
        for i in data.ids
    ]
    assert np.mean(np.array(votes) == data.labels) >= 0.8  # 97 % of votes are right


def test_a_tiny_measurement_has_a_line_for_each_way(capsys: pytest.CaptureFixture[str]):
    tiny = ["votes.n0=5", "votes.n=20", "votes.radii=[0.05]", "votes.unit=10"]
    options = argparse.Namespace(images=1, sequential_images=1, votes=3, eager_only=True, set=tiny)
    found = measured(options)
    assert found["way"].tolist() == [
        "fixed n = 1000",
        "sequential for r = 0.5",
        "sequential for r = 0.25",
    ]
    assert "1241 NFE" in capsys.readouterr().out
    assert [smallest_n(r) for r in (0.25, 0.5)] == [40, 301]
    assert (found["times less (CPU)"].str.replace(",", "").astype(float) > 1).all()
