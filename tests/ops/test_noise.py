"""`noise`: the bits of an independent Philox and inverse in numpy, and the properties that other parts rely on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import kstest

from pysora import ops
from pysora.ops.noise import CENTRE, LN2, LOG, TAIL

OP = "noise"
SHAPES = {"latent": (16, 3, 10, 14), "odd": (5, 2, 3, 37), "one": (1, 1, 1, 1)}


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of uint32 `[..., 4]`, in numpy."""
    c = [counter[..., i].astype(np.uint64) for i in range(4)]
    k = [np.uint64(word) for word in key]
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ k[0], b & low, (a >> np.uint64(32)) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return np.stack(c, -1).astype(np.uint32)


def words(shape: tuple[int, ...], seed: int, sample: int, origin: tuple[int, ...]) -> np.ndarray:
    """Return the random bits of each place, uint32 `[C, T, H, W]`."""
    c, t, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    counter = np.stack([t + origin[0], y + origin[1], x + origin[2], c // 4], -1)
    return np.take_along_axis(philox(counter, (seed, sample)), (c % 4)[..., None], -1)[..., 0]


def normal(bits: np.ndarray) -> np.ndarray:
    """The inverse of the normal distribution in fp32, operation by operation."""
    one = np.float32
    poly = lambda x, c: np.float32(c[-1]) if len(c) == 1 else poly(x, c[1:]) * x + one(c[0])  # noqa: E731
    p = ((bits & 0x7FFFFFFF).astype(np.float32) + one(0.5)) * one(2.0**-32)
    mantissa, exponent = np.frexp(p * (one(1) - p) * one(4))  # mantissa in [1/2, 1)
    low = mantissa < one(0.75)
    t = np.where(low, mantissa * one(2), mantissa) - one(1)
    e = np.where(low, exponent - 1, exponent).astype(np.float32)
    w = -(e * one(LN2) + (t + t * t * poly(t, LOG)))
    z = (one(1) - (p + p)) * np.where(w < 6, poly(w - one(3), CENTRE), poly(np.sqrt(w) - one(3.5), TAIL))
    return np.where(bits >> 31 == 1, -z, z)


def test_philox_known_answers():
    """The vectors of the Random123 distribution."""
    ones = 0xFFFFFFFF
    for counter, key, answer in (
        ([0] * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ones] * 4, (ones, ones), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ):
        assert " ".join(f"{word:08x}" for word in philox(np.array(counter), key)) == answer


@pytest.mark.parametrize("seed, sample, origin", [(0, 0, (0, 0, 0)), (2**32 - 1, 7, (3, 2**32 - 40, 5))])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_bits(runner, shape, seed, sample, origin):
    actual = runner(ops.noise, shape, seed, sample, origin).numpy()
    expected = normal(words(shape, seed, sample, origin))
    assert actual.dtype == np.float32
    assert np.array_equal(actual.view(np.uint32), expected.view(np.uint32))


def test_bits_never_change(runner):
    """A seed must give the same video in the next version too."""
    values = runner(ops.noise, (6, 2, 3, 17), 20, 3, (1, 2, 3)).numpy()
    digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    assert digest[:16] == "7cfe7be8f642c8ee"


def test_accuracy_of_the_inverse(runner):
    shape = (4, 4, 64, 64)
    bits = words(shape, 5, 0, (0, 0, 0))
    exact = ndtri(((bits & 0x7FFFFFFF) + 0.5) * 2.0**-32) * np.where(bits >> 31 == 1, 1, -1)
    assert np.abs(runner(ops.noise, shape, 5).numpy() - exact).max() < 2e-6


def test_accuracy_in_the_tails():
    bits = np.concatenate([np.arange(1 << 12), 2**31 - 1 - np.arange(1 << 12), 2**31 + np.arange(1 << 12)]).astype(
        np.uint32
    )
    exact = ndtri(((bits & 0x7FFFFFFF) + 0.5) * 2.0**-32) * np.where(bits >> 31 == 1, 1, -1)
    assert np.abs(normal(bits) - exact).max() < 2e-6


def test_it_is_normal(runner):
    values = runner(ops.noise, (16, 4, 32, 32), 11).numpy().ravel()
    assert kstest(values, "norm").pvalue > 0.01
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.015


def test_crops_and_origins_agree(runner):
    whole = runner(ops.noise, (8, 4, 9, 40), 3)
    assert torch.equal(runner(ops.noise, (3, 2, 5, 19), 3, 0, (1, 2, 13)), whole[:3, 1:3, 2:7, 13:32])
    assert torch.equal(runner(ops.noise, (8, 4, 9, 40), 3, 0, [0, 0, 0], "cpu"), whole)


def test_seeds_and_samples_differ(runner):
    draws = [runner(ops.noise, (4, 1, 8, 8), seed, sample) for seed, sample in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.equal(a, b) for a, b in zip(draws, draws[1:] + draws[:1], strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_rejects_seeds_out_of_range(runner, seed):
    with pytest.raises(ValueError, match="seed: need 0 to 2"):
        runner(ops.noise, (1, 1, 1, 1), seed)
