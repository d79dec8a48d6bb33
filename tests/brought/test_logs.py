"""Logs of certificates as people have published them: names, times, marks and separators."""

import shutil

import numpy as np
import pytest

from diffcert_ray.errors import ConfigError, LogError, StoreError
from diffcert_ray.report.sigma_names import sigma_of_name
from diffcert_ray.report.sources import open_sources

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"
ROWS = ("0\t3\t3\t0.434\t1\t0:01:44.5", "20\t7\t-1\t0.0\t0\t0:00:02", "40\t5\t6\t0.1\t0\t0:00:03")
LOG = "\n".join((HEADER, *ROWS)) + "\n"


def read(path, content, **keys):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (series,) = open_sources([str(path)], **keys).series
    return series.certificates


def assert_is_the_log(rows, seconds=(104.5, 2.0, 3.0)):
    assert rows["image_id"].tolist() == [0, 20, 40]
    assert rows["radius"].tolist() == [0.434, 0.0, 0.1]
    assert rows["correct"].tolist() == [True, False, False]
    assert rows["abstained"].tolist() == [False, True, False]
    assert np.allclose(rows["seconds"], seconds, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        ("sigma_0.25", 0.25),
        ("noise_0.5_1682", 0.5),
        ("cifar10/resnet110/noise_0.25/test/sigma_0.50", 0.5),
        ("noise_0.12/N_100000", 0.12),
    ],
)
def test_a_log_without_an_ending_is_told_by_its_first_line(tmp_path, name, sigma):
    rows = read(tmp_path / name, LOG)
    assert_is_the_log(rows)
    assert rows["sigma"].unique().tolist() == [sigma]


def test_a_file_without_an_ending_that_is_no_log_is_refused_by_its_first_line(tmp_path):
    with pytest.raises(LogError, match=r"sigma_0\.25: the first line is .* lacks idx, label"):
        read(tmp_path / "sigma_0.25", "epoch\tloss\n1\t2\n")
    with pytest.raises(LogError, match=r"run\.toml: the first line"):  # before any word of sigma
        read(tmp_path / "run.toml", "votes_id = 1\n")
    shutil.rmtree(tmp_path)
    with pytest.raises(StoreError):  # nothing there: no run either
        open_sources([str(tmp_path / "sigma_0.25")])


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (LOG.encode("utf-8-sig"), (104.5, 2, 3)),
        (LOG.encode("utf-16"), (104.5, 2, 3)),
        (LOG.replace("\n", "\r\n"), (104.5, 2, 3)),
        (LOG.replace("0:01:44.5", "104.5"), (104.5, 2, 3)),
        (LOG.replace("0:01:44.5", "1:44.5"), (104.5, 2, 3)),
        (LOG.replace("0:01:44.5", "1.5 min"), (90, 2, 3)),
        (LOG.replace("0:01:44.5", "104500ms"), (104.5, 2, 3)),
        (LOG.replace("0:01:44.5", "2 days, 0:00:01"), (172801, 2, 3)),
        (LOG.replace("0:01:44.5", "-"), (np.nan, 2, 3)),
        (
            "\n".join(line.rpartition("\t")[0] for line in (HEADER, *ROWS)) + "\n",
            (np.nan, np.nan, np.nan),
        ),
        (LOG.replace("-1\t0.0", "-1\tnan"), (104.5, 2, 3)),
        (LOG.replace("-1\t0.0", "-1\t-1"), (104.5, 2, 3)),
        (LOG.replace("434\t1", "434\tTrue").replace("0.0\t0", "0.0\tFalse"), (104.5, 2, 3)),
        (LOG.replace("434\t1", "434\t1.0"), (104.5, 2, 3)),
        (LOG.replace("\t", ","), (104.5, 2, 3)),
        (LOG.replace("\t", "   "), (104.5, 2, 3)),
        (LOG.replace("idx\tlabel\tpredict", "Idx\tLabel\tPredict"), (104.5, 2, 3)),
        (LOG.rstrip("\n"), (104.5, 2, 3)),
        ("\n" + LOG + "\n\n", (104.5, 2, 3)),
    ],
    ids=["bom", "utf-16", "crlf", "seconds", "m:s", "minutes", "ms", "days", "no time", "no column",
         "nan radius", "radius -1", "True", "1.0", "commas", "spaces", "capitals", "no newline",
         "empty lines"],
)  # fmt: skip
def test_a_log_in_another_hand_says_the_same(tmp_path, content, seconds):
    assert_is_the_log(read(tmp_path / "sigma_0.25", content), seconds)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (LOG.replace("0.434", "nan"), "line 2 has radius 'nan'"),  # not abstained
        (LOG.replace("434\t1", "434\tyes"), "line 2 has correct 'yes'"),
        (LOG.replace("0.434", "1.6"), r"radius 1.6, more than 6 times the sigma 0\.25"),
        (LOG.replace("0:01:44.5", "0:01:44.5\textra"), "cannot be read as a table"),
        (LOG.replace("\t0:01:44.5", "\t0:01:44.5\textra").replace("\t0:00:02", "\t0:00:02\tx")
         .replace("\t0:00:03", "\t0:00:03\tx"), "cannot be read as a table"),
    ],
)  # fmt: skip
def test_a_log_that_would_be_misread_is_refused(tmp_path, content, match):
    with pytest.raises(LogError, match=match):
        read(tmp_path / "sigma_0.25", content)


def test_a_folder_of_logs_is_told_from_a_run_that_is_not_there(tmp_path):
    for name in ("sigma_0.25", "sigma_0.50", "README"):
        (tmp_path / name).write_text(LOG)
    with pytest.raises(ConfigError, match=r"folder of 2 files .*/sigma_0\.25 .*/sigma_0\.50"):
        open_sources([str(tmp_path)])


def test_a_log_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="that it is text"):
        read(tmp_path / "sigma_0.25", b"\x89PNG\xff\xfe\x00")


@pytest.mark.parametrize(
    ("path", "sigma"),
    [
        ("noise_0.25/test/sigma_0.50", 0.5),  # trained at one noise, certified at another
        ("noise_0.25_sigma_0.50", 0.5),
        ("noise_0.5_1682", 0.5),
        ("sigma=1", 1.0),
        ("noise_sd_0.12.tsv", 0.12),
        ("sigma_.25/noise_0.25", 0.25),
        ("sigma_25", None),  # a percentage, or a grey level
        ("sigma_025", None),
        ("sigma_0p25", None),
        ("sigma_0,25", None),
        ("sigma_0", None),
        ("sigma_0.25_sigma_0.5", None),
        ("noise_0.25_noise_0.5", None),
        ("sigma_0.5/noise_0.25", None),
        ("noise_0.5/test/noise_0.25", None),
        ("denoise_2", None),
        ("log.tsv", None),
    ],
)
def test_sigma_is_taken_from_a_name_only_where_it_is_told_once(tmp_path, path, sigma):
    assert sigma_of_name(path) == sigma
    if sigma is None:
        with pytest.raises(LogError, match="--log-sigma"):
            read(tmp_path / path, LOG)
        assert read(tmp_path / path, LOG, log_sigma=0.25)["sigma"].iloc[0] == 0.25
