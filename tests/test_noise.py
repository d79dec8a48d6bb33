"""Noise by address: the published generator, the distribution, and what may not matter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffcert_ray.conventions import MAX_IMAGE_ID, STREAM_NAMES
from diffcert_ray.datasets.pixel_grid import STEPS
from diffcert_ray.method.noise import MAX_LEVEL, MAX_VOTE, NoiseSource, philox4x32

SOURCE = NoiseSource(seed=7, sigma=0.25, elements=10)


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def noise(image_id=0, stream=0, vote=0, level=0, source=SOURCE) -> torch.Tensor:
    """Noise of one address, or of many given as equally long lists."""
    columns = np.broadcast_arrays(*(np.atleast_1d(c) for c in (image_id, stream, vote, level)))
    ids, streams, votes, levels = (column.astype(np.int64) for column in columns)
    return source.normal(ids, streams, votes, levels)


def smoothing(ids, streams, votes, source=SOURCE) -> torch.Tensor:
    """Smoothing noise in units of its standard deviation."""
    return source.steps(ids, streams, votes).float() / (source.sigma * STEPS)


# Random123's kat_vectors: philox 4x32, 10 rounds (counter, key, result).
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_generator_gives_the_published_known_answers(counter: str, key: str, answer: str) -> None:
    found = philox4x32(tuple(torch.tensor([w]) for w in words(counter)), tuple(words(key)))
    assert [int(word) for word in found] == words(answer)


@settings(max_examples=50, deadline=None)
@given(
    counter=st.lists(st.integers(0, 2**32 - 1), min_size=4, max_size=4),
    key=st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=2),
)
def test_generator_is_philox_in_unbounded_integers(counter: list[int], key: list[int]) -> None:
    found = philox4x32(tuple(torch.tensor(word) for word in counter), tuple(key))
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    assert [int(word) for word in found] == [c0, c1, c2, c3]


# ---- distribution (false alarms: each test below fails by chance with probability 1e-4) --------


def sample(seed: int = 1, votes: int = 500, elements: int = 401) -> np.ndarray:
    """[votes, elements]; 401 is no multiple of the generator's four numbers a block."""
    source = NoiseSource(seed, 0.25, elements)
    return noise(vote=np.arange(votes), source=source).double().numpy()


def test_numbers_are_normal() -> None:
    values = sample().ravel()
    assert stats.kstest(values, "norm").pvalue > 1e-4
    # The tails too, where a slip in the transform would hide from the statistic above.
    beyond = int((np.abs(values) > 3).sum())
    assert stats.binomtest(beyond, values.size, 2 * stats.norm.sf(3)).pvalue > 1e-4


def test_moments_are_those_of_the_normal_distribution() -> None:
    values = sample(seed=2).ravel()
    # Variances of sums of x, x^2 - 1, x^3 and x^4 - 3 for standard normal x; Bonferroni over four.
    scores = [
        ((values**power - mean).sum()) / np.sqrt(values.size * variance)
        for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96))
    ]
    assert np.abs(scores).max() < stats.norm.isf(1e-4 / 8)


@pytest.mark.parametrize("lag", [(0, 1), (0, 2), (0, 4), (1, 0), (1, 1)])
def test_neighbours_within_a_tensor_and_between_votes_are_not_correlated(lag: tuple) -> None:
    values = sample(seed=3)
    rows, columns = values.shape
    a = values[: rows - lag[0], : columns - lag[1]]
    b = values[lag[0] :, lag[1] :]
    for left, right in ((a, b), (a**2 - 1, b**2 - 1)):
        score = (left * right).sum() / np.sqrt((left**2).sum() * (right**2).mean())
        assert abs(score) < stats.norm.isf(1e-4 / 4)


def test_sums_over_a_tensor_are_normal_over_the_votes() -> None:
    """A dependence within a tensor, invisible number by number, would show here."""
    values = sample(seed=4, votes=2000, elements=64)
    assert stats.kstest(values.sum(axis=1) / 8, "norm").pvalue > 1e-4
    assert stats.kstest((values**2).sum(axis=1), stats.chi2(64).cdf).pvalue > 1e-4


# ---- addresses ---------------------------------------------------------------------------------


def test_every_address_has_noise_of_its_own() -> None:
    """No two of seed, sigma, image, stream, vote, purpose and level give one tensor."""
    grid = np.meshgrid(
        [0, 1, 2**31, MAX_IMAGE_ID], [0, 1], [0, 1, 2**31, MAX_VOTE], [0, 1, MAX_LEVEL]
    )
    ids, streams, votes, levels = (column.ravel() for column in grid)
    tensors = [
        made
        for seed in (0, 1, 2**62)
        for sigma in (0.25, 0.5)
        for source in [NoiseSource(seed, sigma, 8)]
        for made in (
            noise(ids, streams, votes, levels, source),
            smoothing(ids, streams, votes, source),
        )
    ]
    numbers = torch.cat(tensors).ravel()
    # 9,216 numbers of 24 bits or more: that two are equal has probability 2 %; whole rows, nil.
    rows = torch.cat(tensors).numpy()
    assert len(rows) == 12 * 96
    assert len(np.unique(rows, axis=0)) == 6 * 96 + 6 * 32  # smoothing noise has no levels
    assert len(numbers.unique()) > 0.99 * (6 * 96 + 6 * 32) * 8


def test_numbers_of_one_tensor_are_different() -> None:
    assert len(noise(source=NoiseSource(0, 0.25, 1000)).unique()) > 990


def test_streams_are_those_of_the_units_of_work() -> None:
    assert STREAM_NAMES == STREAM_NAMES


# ---- what may not matter -----------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40))
def test_neighbours_and_order_change_no_bit(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, limit, count) for limit in (2**32, 2, 2**32, 2**24)]
    ids, streams, votes, levels = columns
    together = noise(ids, streams, votes, levels)
    order = rng.permutation(count)
    shuffled = noise(ids[order], streams[order], votes[order], levels[order])
    assert torch.equal(shuffled, together[order])
    for row in (0, count - 1):
        alone = noise(ids[row], streams[row], votes[row], levels[row])
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000])
def test_number_of_tensors_changes_no_bit(count: int) -> None:
    votes = np.arange(1000)
    assert torch.equal(noise(vote=votes[:count]), noise(vote=votes)[:count])


@pytest.mark.parametrize("elements", [1, 2, 3, 4, 5, 10, 192])
def test_longer_tensor_begins_like_a_shorter_one(elements: int) -> None:
    long = noise(vote=[0, 5], source=NoiseSource(7, 0.25, 1000))
    short = noise(vote=[0, 5], source=NoiseSource(7, 0.25, elements))
    assert short.shape == (2, elements)
    assert torch.equal(short, long[:, :elements])


def test_threads_change_no_bit() -> None:
    votes = np.arange(2000)
    alone = noise(vote=votes)
    torch.set_num_threads(2)
    try:
        assert torch.equal(noise(vote=votes), alone)
    finally:
        torch.set_num_threads(1)


def test_numbers_have_not_changed() -> None:
    """Every stored run would be void: written out from the generator's definition in float64."""
    k0, k1 = SOURCE.key
    counter = tuple(torch.tensor([w]) for w in (0, 3, 2, (1 << 24) * 3 + 9))
    x0, x1, x2, x3 = (int(w) for w in philox4x32(counter, (k0, k1)))
    first, second = (np.sqrt(-2 * np.log((x + 0.5) / 2**32)) for x in (x0, x2))
    angles = [2 * np.pi * (x + 0.5) / 2**32 for x in (x1, x3)]
    expected = [first * np.cos(angles[0]), first * np.sin(angles[0])]
    expected += [second * np.cos(angles[1]), second * np.sin(angles[1])]
    found = noise(image_id=2, stream=1, vote=3, level=9)[0, :4]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert SOURCE.key == (3996562323, 1601385063)


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_id", -1),
        ("image_id", MAX_IMAGE_ID + 1),
        ("vote", -1),
        ("vote", MAX_VOTE + 1),
        ("level", -1),
        ("level", MAX_LEVEL + 1),
    ],
)
def test_part_of_an_address_out_of_range_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{name} .*{value}.* is out of range: .* holds 0 to"):
        noise(**{name: [0, value]})


@pytest.mark.parametrize("stream", [-1, 2])
def test_unknown_stream_is_refused(stream: int) -> None:
    with pytest.raises(ValueError, match=r"stream .* is out of range"):
        noise(stream=stream)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed is {seed}: it must be in \[0, 2\^63\)"):
        NoiseSource(seed, 0.25, 1)


@pytest.mark.parametrize("elements", [0, 2**34])
def test_number_of_elements_out_of_range_is_refused(elements: int) -> None:
    with pytest.raises(ValueError, match=f"an image has {elements} elements"):
        NoiseSource(0, 0.25, elements)


def test_noise_is_made_without_a_look_at_the_devices_values():
    """On the meta device there are none: whatever read one back would fail, or wait on a GPU."""
    source, index = NoiseSource(3, 0.25, 10), np.arange(4)
    made = source.normal(index, index * 0, index, index, device="meta")
    assert (made.shape, made.dtype, made.device.type) == ((4, 10), torch.float32, "meta")
