"""The key of a noise address: what Philox is keyed by for one seed and sigma."""

import hashlib
import struct


def noise_key(seed: int, sigma: float) -> tuple[int, int]:
    """The two 32-bit key words of Philox for a seed and a sigma.

    Args:
        seed: the run's seed, 0 <= seed < 2^63.
        sigma: smoothing noise, pixel units; it only tells the streams of two sigmas apart.

    Source: ours: a hash, so that no two seeds or sigmas share a stream.
    """
    packed = struct.pack("<qd", seed, sigma)
    digest = hashlib.blake2b(packed, digest_size=8, person=b"diffcert-noise").digest()
    first, second = struct.unpack("<II", digest)
    return first, second
