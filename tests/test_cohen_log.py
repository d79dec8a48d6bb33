"""Logs of Cohen et al.: written and read without loss, and as their own scripts write them."""

import io

import numpy as np
import pandas as pd
import pytest

from diffcert_ray.certificates.metrics import certified_accuracy
from diffcert_ray.errors import LogError
from diffcert_ray.report.cohen_log import read_cohen_log, write_cohen_log
from diffcert_ray.report.sigma_names import sigma_of_name
from tests.test_report import ROWS, certificates

PUBLISHED = (
    "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"
    "0\t3\t3\t0.434\t1\t0:01:44.325616\n"
    "20\t7\t7\t0.0123\t1\t0:01:30.5\n"
    "40\t4\t5\t0.25\t0\t1 day, 0:00:01\n"
    "60\t7\t-1\t0.0\t0\t0:00:02\n"
)
SAME = ["sigma", "image_id", "label", "predicted", "correct", "abstained", "radius", "alpha",
        "bound", "seconds"]  # fmt: skip


def test_what_is_written_is_read_back_without_loss():
    rows = ROWS.assign(radius=ROWS["radius"] * np.pi / 3, seconds=[0.1, 2, 90.123456, 86402, 0])
    found = read_cohen_log(write_cohen_log(rows), sigma=0.25)
    pd.testing.assert_frame_equal(found[SAME], rows[SAME], check_dtype=False)


def test_the_written_log_is_one_that_their_scripts_read():
    rows = pd.read_csv(io.StringIO(write_cohen_log(ROWS)), delimiter="\t")
    assert list(rows) == ["idx", "label", "predict", "radius", "correct", "time"]
    # Their certified accuracy: mean of correct & (radius >= r).
    theirs = [(rows["correct"] & (rows["radius"] >= r)).mean() for r in (0.0, 0.2)]
    assert theirs == certified_accuracy(ROWS, [0.0, 0.2])["certified_accuracy"].tolist()


def test_a_published_log_is_read_with_its_times_and_abstentions():
    found = read_cohen_log(PUBLISHED, sigma=0.5, alpha=0.01)
    assert found["image_id"].tolist() == [0, 20, 40, 60]
    assert found["abstained"].tolist() == [False, False, False, True]
    assert found["seconds"].tolist() == [104.325616, 90.5, 86401.0, 2.0]
    accuracy = certified_accuracy(found, [0.0, 0.25])["certified_accuracy"]
    assert accuracy.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks idx"),
        ("idx\tlabel\tpredict\tcorrect\ttime\n1\t2\t2\t1\t0:00:01\n", "lacks radius"),
        (PUBLISHED.split("\n")[0] + "\n", "no rows"),
        (PUBLISHED + "80\t7\t7\t0.4", "line 6 has correct ''"),
        (PUBLISHED.replace("0.434", "nan"), "line 2 has radius 'nan'"),
        (PUBLISHED.replace("0.434", "-1"), "line 2 has radius '-1'"),
        (PUBLISHED.replace("0.434", "inf"), "line 2 has radius 'inf'"),
        (PUBLISHED.replace("20\t7\t7", "20\t7\t8"), "line 3 says correct"),
        (PUBLISHED.replace("20\t7\t7", "0\t7\t7"), "line 3 repeats"),
        (PUBLISHED.replace("-1\t0.0", "-1\t0.1"), "line 5 abstains"),
    ],
)
def test_a_damaged_log_is_refused_with_the_line(text, message):
    with pytest.raises(LogError, match=message):
        read_cohen_log(text, sigma=0.25)


def test_a_log_has_one_sigma():
    both = pd.concat([ROWS, certificates([0.1], sigma=0.5)])
    with pytest.raises(ValueError, match="one log each"):
        write_cohen_log(both)


@pytest.mark.parametrize(
    ("path", "sigma"),
    [
        ("cifar10/noise_0.25/test/sigma_0.50", 0.5),
        ("cifar10/noise_0.25/log.tsv", 0.25),
        ("run-sigma-0.5.tsv", 0.5),
        ("SIGMA1.0.tsv", 1.0),
        ("log.tsv", None),
        ("version-2.tsv", None),
    ],
)
def test_the_sigma_is_in_the_name(path, sigma):
    assert sigma_of_name(path) == sigma
