"""The kernel classifier that says what the training digits allow."""

import numpy as np

from jobs.kernel_limit import kernel_votes, main


def test_votes_are_the_most_probable_class_of_a_mixture_of_gaussians():
    images = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.2]], np.float32)
    labels = np.array([3, 5, 5])
    noisy = np.array([[0.4, 0.0], [0.6, 0.0], [0.49, 0.1]], np.float32)
    votes = kernel_votes(noisy, images, labels, 0.04)
    density = np.exp(-((noisy[:, None] - images) ** 2).sum(-1) / 0.08)
    scores = [density[:, labels == c].sum(1) for c in range(10)]
    assert votes.tolist() == np.argmax(scores, axis=0).tolist() == [3, 5, 5]


def test_the_job_prints_a_row_for_each_blur(capsys):
    assert main(["--first", "2", "--votes", "40", "--blur", "0", "0.1", "--radii", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
