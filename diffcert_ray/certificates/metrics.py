"""Summarise the certificates of a dataset: certified accuracy, ACR, p_low, abstentions.

Every function takes the certificates table (one row per sigma and image) and returns one row, or
one block of rows, per sigma. Rows that must not be compared with each other are refused: different
bounds, alphas, methods or runs, and different n where n is fixed. "sequential" runs stop at the
largest asked radius, so their radii and p_low are cut off: such rows say so (`cut_off`), and their
ACR must not be compared with that of fixed n.

Which images of an unfinished run have a certificate depends on their votes: with "sequential",
clear images stop first, and on a cluster images that broke workers are given up. Figures of these
alone say too much, an interval at their number too. So `asked`, what ``Run.asked`` gives, counts
the others as not certified: shares are lower bounds, whatever the others turn out to be. The same
holds for fixed n, although images finish nearly in their order there: one rule, and nobody can tell
given-up images from hard ones.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from diffcert_ray.certificates.clopper_pearson import lower_confidence_bound, upper_confidence_bound
from diffcert_ray.certificates.fraction import check_fraction
from diffcert_ray.certificates.radius import BOUNDS
from diffcert_ray.conventions import ABSTAIN

CERTIFIED_BOUNDS = (*BOUNDS, "lipschitz", "local")
"""Bounds whose rows are certificates; anything else (an estimate, say) is refused."""
ONE_VALUE_COLUMNS = ("bound", "alpha", "method", "votes_id")
"""Columns that may hold only one value in a table, `method` and `votes_id` where they exist."""


def certified_accuracy(
    certificates: pd.DataFrame,
    radii: Sequence[float],
    *,
    rho: float = 0.001,
    confidence: float = 0.95,
    asked: Mapping[float, int] | None = None,
) -> pd.DataFrame:
    """Share of images with the right class and a certified radius of at least r, for each r.

    Args:
        certificates: one row per sigma and image with sigma, image_id, label, correct, abstained,
            radius (pixel units), alpha, bound, n.
        radii: asked radii, pixel units, >= 0.
        rho: failure probability of guaranteed_low, in (0, 1), for each sigma by itself.
        confidence: of the interval for the population, in (0, 1).
        asked: images asked for at each sigma, as ``Run.asked`` gives them; those without a row
            count as not certified. By default all have a row.

    Returns:
        One row per sigma and radius: sigma, radius, certified_accuracy (abstentions, wrong classes
        and images without a row count as 0), interval_low and interval_high (exact two-sided
        binomial interval for the population the images were drawn from; assumes a random sample;
        its upper end takes images without a row as certified), guaranteed_low (with probability at
        least 1 - rho over the noise, the true certified accuracy of these very images is at least
        this at all radii together; assumes independent noise per image), n_images (asked for),
        n_missing (of them, without a row).

    Raises:
        ValueError: the table lacks a column, is unlabelled, or mixes what cannot be compared; asked
            lacks a sigma, or counts fewer images than there are.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 4 and appendix C; the
        binomial quantile in place of their Bernstein form is ours: an image is over-certified
        with probability at most alpha, so all N together at most BinomQuantile(1 - rho; N, alpha)
        times.
    """
    table = _comparable(certificates, labelled=True)
    _check_radii(radii)
    check_fraction("rho", rho)
    check_fraction("confidence", confidence)
    rows = []
    for sigma, block, n_images in _by_sigma(table, asked):
        missing = n_images - len(block)
        faulty = stats.binom.ppf(1.0 - rho, n_images, float(block["alpha"].iloc[0]))
        certified_radius = _counted_radius(block)
        for radius in radii:
            certified = int(np.count_nonzero(certified_radius >= radius))
            low, high = _binomial_interval(certified, n_images, confidence, missing)
            rows.append(
                {
                    "sigma": sigma,
                    "radius": radius,
                    "certified_accuracy": certified / n_images,
                    "interval_low": low,
                    "interval_high": high,
                    "guaranteed_low": max(0.0, (certified - faulty) / n_images),
                    "n_images": n_images,
                    "n_missing": missing,
                }
            )
    return pd.DataFrame(rows)


def best_sigma_per_radius(
    certificates: pd.DataFrame,
    radii: Sequence[float],
    *,
    rho: float = 0.001,
    confidence: float = 0.95,
    asked: Mapping[float, int] | None = None,
) -> pd.DataFrame:
    """For each radius, the sigma with the highest certified accuracy, marked as a selection.

    Choosing among m sigmas after seeing the results costs: per image the certificates hold
    together with probability 1 - m * alpha, and rho and the interval's error are split by m, so
    that what is said of the chosen sigma holds for all of them.

    Args:
        certificates: as for `certified_accuracy`, the same images at each sigma.
        radii: asked radii, pixel units, >= 0.
        rho: failure probability of guaranteed_low over all sigmas together, in (0, 1).
        confidence: of the interval over all sigmas together, in (0, 1).
        asked: images asked for at each sigma, as ``Run.asked`` gives them: refused while some have
            no row, since lower bounds from unfinished sigmas rank them by their progress.

    Returns:
        One row per radius: the columns of `certified_accuracy` for the best sigma (the smallest
        one of those that tie), n_sigmas (m), alpha_per_image (m * alpha) and selected (True if
        m > 1: the figures were chosen, not planned).

    Raises:
        ValueError: as `certified_accuracy`, the sigmas do not have the same images, or some that
            were asked for have none.

    Source: ours: the union bound over the sigmas.
    """
    table = _comparable(certificates, labelled=True)
    n_sigmas = table["sigma"].nunique()
    if not (table.groupby("image_id")["sigma"].nunique() == n_sigmas).all():
        raise ValueError(
            f"the {n_sigmas} sigmas do not have the same images; finish the run, or keep only the "
            "image_id values that every sigma has"
        )
    have = table["sigma"].value_counts()
    for sigma, images in (asked or {}).items():
        if have.get(sigma, 0) < images:
            raise ValueError(
                f"{have.get(sigma, 0)} of {images} images have a certificate at sigma={sigma}; "
                "finish the run"
            )
    check_fraction("confidence", confidence)
    accuracy = certified_accuracy(
        table, radii, rho=rho / n_sigmas, confidence=1.0 - (1.0 - confidence) / n_sigmas
    )
    ranked = accuracy.sort_values(["certified_accuracy", "sigma"], ascending=[False, True])
    best = ranked.groupby("radius", as_index=False).first()
    alpha = float(table["alpha"].iloc[0])
    return best[accuracy.columns].assign(
        n_sigmas=n_sigmas,
        alpha_per_image=min(1.0, n_sigmas * alpha),
        selected=n_sigmas > 1,
    )


def acr(certificates: pd.DataFrame, *, asked: Mapping[float, int] | None = None) -> pd.DataFrame:
    """Average certified radius: 0 where the class is wrong or the certificate abstains.

    A known poor summary, since a few easy images with large radii outweigh many hard ones: show
    `p_low_distribution` next to it.

    Args:
        certificates: as for `certified_accuracy`.
        asked: as for `certified_accuracy`; an image without a row has radius 0.

    Returns:
        One row per sigma: sigma, acr (pixel units), n_images, n_missing, cut_off (the radii were
        cut off by stopping; not comparable with fixed n).

    Raises:
        ValueError: as `certified_accuracy`.

    Source: Zhai et al. 2020 (arXiv:2001.02378), section 3; its weakness: arXiv:2410.06895.
    """
    table = _comparable(certificates, labelled=True)
    rows = [
        {
            "sigma": sigma,
            "acr": float(np.maximum(_counted_radius(block), 0.0).sum() / n_images),
            "n_images": n_images,
            "n_missing": n_images - len(block),
            "cut_off": _cut_off(block),
        }
        for sigma, block, n_images in _by_sigma(table, asked)
    ]
    return pd.DataFrame(rows)


def p_low_distribution(
    certificates: pd.DataFrame, *, asked: Mapping[float, int] | None = None
) -> pd.DataFrame:
    """Empirical distribution of p_low over the images, right or wrong, labelled or not.

    Args:
        certificates: one row per sigma and image with sigma, image_id, p_low, alpha, bound, n.
        asked: as for `certified_accuracy`; an image without a row counts as below all others.

    Returns:
        One row per sigma and distinct p_low, ascending: sigma, p_low, share_at_most (share of
        images with at most this p_low), n_images, n_missing, cut_off (see `acr`).

    Raises:
        ValueError: the table lacks a column, mixes what cannot be compared, or has no p_low (the
            bounds that need no votes have none); as `certified_accuracy` for asked.

    Source: proposed beside ACR by arXiv:2410.06895.
    """
    table = _comparable(certificates, columns=("p_low",))
    if table["p_low"].isna().any():
        raise ValueError(
            f"{int(table['p_low'].isna().sum())} rows have no p_low; only bounds from votes have "
            f"one ({', '.join(BOUNDS)}), leave other rows out"
        )
    blocks = []
    for sigma, block, n_images in _by_sigma(table, asked):
        missing = n_images - len(block)
        values, images = np.unique(block["p_low"].to_numpy(dtype=float), return_counts=True)
        blocks.append(
            pd.DataFrame(
                {
                    "sigma": sigma,
                    "p_low": values,
                    "share_at_most": (missing + np.cumsum(images)) / n_images,
                    "n_images": n_images,
                    "n_missing": missing,
                    "cut_off": _cut_off(block),
                }
            )
        )
    return pd.concat(blocks, ignore_index=True)


def abstention_rate(
    certificates: pd.DataFrame,
    *,
    confidence: float = 0.95,
    asked: Mapping[float, int] | None = None,
) -> pd.DataFrame:
    """Share of images whose certificate abstains; needs no labels.

    Args:
        certificates: one row per sigma and image with sigma, image_id, abstained, alpha, bound, n.
        confidence: of the interval for the population, in (0, 1).
        asked: as for `certified_accuracy`; images without a row may abstain or not, which only the
            interval allows for.

    Returns:
        One row per sigma: sigma, abstention_rate (known to abstain), interval_low, interval_high,
        n_images, n_missing.

    Raises:
        ValueError: the table lacks a column or mixes what cannot be compared; as
            `certified_accuracy` for asked.

    Source: Cohen, Rosenfeld, Kolter 2019 (arXiv:1902.02918), section 4.
    """
    table = _comparable(certificates, columns=("abstained",))
    check_fraction("confidence", confidence)
    rows = []
    for sigma, block, n_images in _by_sigma(table, asked):
        abstained = int(block["abstained"].to_numpy(dtype=bool).sum())
        missing = n_images - len(block)
        low, high = _binomial_interval(abstained, n_images, confidence, missing)
        rows.append(
            {
                "sigma": sigma,
                "abstention_rate": abstained / n_images,
                "interval_low": low,
                "interval_high": high,
                "n_images": n_images,
                "n_missing": missing,
            }
        )
    return pd.DataFrame(rows)


def _by_sigma(
    table: pd.DataFrame, asked: Mapping[float, int] | None
) -> Iterator[tuple[float, pd.DataFrame, int]]:
    """The rows of each sigma, and the number of images that figures are about."""
    for key, block in table.groupby("sigma"):
        sigma = float(str(key))
        n_images = len(block) if asked is None else asked.get(sigma, 0)
        if n_images < len(block):
            raise ValueError(
                f"asked says {n_images} images at sigma={sigma}, but {len(block)} have a "
                "certificate; give what the asked() of the same run returns"
            )
        yield sigma, block, n_images


def _counted_radius(block: pd.DataFrame) -> np.ndarray:
    """The radius where it counts, -inf where the class is wrong or the certificate abstains.

    Minus infinity rather than 0: an abstention is no certificate at radius 0 either.
    """
    counts = block["correct"].to_numpy(dtype=bool) & ~block["abstained"].to_numpy(dtype=bool)
    return np.where(counts, block["radius"].to_numpy(dtype=float), -np.inf)


def _cut_off(block: pd.DataFrame) -> bool:
    return bool((block["bound"] == "sequential").any())


def _binomial_interval(
    successes: int, trials: int, confidence: float, unknown: int
) -> tuple[float, float]:
    """Exact two-sided Clopper-Pearson interval; holds whatever the unknown trials turn out to be.

    Both ends rise with the number of successes, so its least and largest value give the ends.
    """
    tail = (1.0 - confidence) / 2
    return (
        lower_confidence_bound(successes, trials, tail),
        upper_confidence_bound(successes + unknown, trials, tail),
    )


def _comparable(
    certificates: pd.DataFrame, *, labelled: bool = False, columns: tuple[str, ...] = ()
) -> pd.DataFrame:
    """Refuse a table whose rows cannot stand in one figure."""
    needed = {"sigma", "image_id", "alpha", "bound", "n", *columns}
    if labelled:
        needed |= {"label", "correct", "abstained", "radius"}
    lacking = sorted(needed - set(certificates.columns))
    if lacking:
        raise ValueError(f"the certificates table lacks the columns {', '.join(lacking)}")
    if certificates.empty:
        raise ValueError("the certificates table has no rows; certify at least one image first")
    if certificates["sigma"].isna().any():
        raise ValueError("rows without sigma; give the smoothing noise in pixel units in each row")
    _check_one_value(certificates)
    repeated = certificates.duplicated(["sigma", "image_id"])
    if repeated.any():
        row = certificates[repeated].iloc[0]
        raise ValueError(
            f"image_id={row['image_id']} at sigma={row['sigma']} occurs more than once "
            f"({int(repeated.sum())} repeats); drop repeated rows, and summarise runs one by one"
        )
    if labelled:
        _check_labels(certificates)
    return certificates


def _check_one_value(certificates: pd.DataFrame) -> None:
    for column in ONE_VALUE_COLUMNS:
        if column in certificates and certificates[column].nunique(dropna=False) > 1:
            raise ValueError(
                f"the table mixes {column}={sorted(map(str, certificates[column].unique()))}; "
                "such rows are not comparable, summarise each of them by itself"
            )
    bound = certificates["bound"].iloc[0]
    if bound not in CERTIFIED_BOUNDS:
        raise ValueError(
            f"bound={bound!r} is no certificate; certified figures are made from "
            f"{', '.join(CERTIFIED_BOUNDS)}"
        )
    used = certificates.loc[certificates["n"] != 0, "n"]  # an abstention without votes fits any n
    if bound != "sequential" and used.nunique(dropna=False) > 1:
        raise ValueError(
            f"the table mixes n={sorted(certificates['n'].unique())} under the fixed-n bound "
            f"{bound!r}; summarise each n by itself, or certify with bound 'sequential'"
        )


def _check_labels(certificates: pd.DataFrame) -> None:
    unlabelled = int((certificates["label"].isna() | certificates["correct"].isna()).sum())
    if unlabelled:
        raise ValueError(
            f"{unlabelled} of {len(certificates)} rows have no label, so accuracy is unknown; give "
            "the dataset labels, drop these rows, or use p_low_distribution and abstention_rate, "
            "which need none"
        )
    _check_classes(certificates)
    kept = certificates[~certificates["abstained"].astype(bool)]
    if kept["radius"].isna().any():
        raise ValueError(
            f"{int(kept['radius'].isna().sum())} rows neither abstain nor have a radius; "
            "certify these images again"
        )


def _check_classes(certificates: pd.DataFrame) -> None:
    """Refuse rows that are called correct, or abstentions, against their own classes."""
    if "predicted" not in certificates:
        return
    abstained = certificates["predicted"] == ABSTAIN
    right = (certificates["predicted"] == certificates["label"]) & ~abstained
    wrong = (certificates["abstained"].astype(bool) != abstained) | (
        certificates["correct"].astype(bool) != right
    )
    if wrong.any():
        row = certificates[wrong].iloc[0]
        raise ValueError(
            f"{int(wrong.sum())} rows contradict themselves, first image_id={row['image_id']}: "
            f"correct={row['correct']}, abstained={row['abstained']} with "
            f"predicted={row['predicted']} and label={row['label']}; take the rows that "
            "open_run gives"
        )


def _check_radii(radii: Sequence[float]) -> None:
    if len(radii) == 0 or not all(0.0 <= radius < math.inf for radius in radii):
        raise ValueError(f"radii={list(radii)}: give at least one, finite and at least 0")
