"""Tiled equals untiled, and a tile's halo is exactly what its layers see."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pysora.models.vae import VAE, VAEConfig
from pysora.models.vae_blocks import Layer, Stream
from pysora.models.vae_plan import Job, TilePlan
from pysora.models.vae_tiles import complete, reach_through, windows

pytestmark = pytest.mark.usefixtures("one_thread")

# Two levels of upsampling, one of them in time too.
SMALL = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 4,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
RESIDUAL = {
    **SMALL,
    "decoder_base_dim": 6,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 8,
}
FORMS = {"wan 2.1": SMALL, "wan 2.2": RESIDUAL}
LENGTHS = {"image": (1, 1), "by one": (3, 1), "by two": (3, 2)}
TILES = [((2, 3), False), ((1, 4), True)]
CELLS = (7, 23)


@pytest.fixture(scope="module", params=FORMS.values(), ids=FORMS)
def vae(request: pytest.FixtureRequest) -> VAE:
    """In fp64, where rounding cannot hide a halo that lacks a column."""
    torch.manual_seed(5)
    made = VAE(VAEConfig.from_dict(request.param)).double().requires_grad_(False)
    for name, weight in made.named_parameters():
        # Biases and gains that begin at 0 and 1 would hide what the zeros beyond the edge become.
        if weight.ndim == 1 or name.endswith("gamma"):
            weight.add_(0.2 * torch.randn_like(weight))
    return made


def some_plans(job: Job) -> list[TilePlan]:
    return [job.plan(cut, *tiles) for cut in job.cuts() for tiles in TILES]


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(("T", "chunk"), LENGTHS.values(), ids=LENGTHS)
def test_decoding(vae: VAE, T: int, chunk: int) -> None:
    latents = torch.randn(1, 4, T, *CELLS, dtype=torch.float64)
    untiled = vae.decode(latents, chunk=T)
    for plan in some_plans(vae.decoding(latents.shape, chunk, 8)):
        pieces = vae.decode_pieces(latents, plan, chunk)
        tiled = torch.cat(list(complete(pieces, plan.rows, plan.cols)), 2)
        assert relative(tiled, untiled) < 1e-12, plan


@pytest.mark.parametrize(("T", "chunk"), LENGTHS.values(), ids=LENGTHS)
def test_encoding(vae: VAE, T: int, chunk: int) -> None:
    height, width = (n * vae.spatial_factor for n in CELLS)
    video = torch.rand(2, 3, vae.frames(T), height, width, dtype=torch.float64) * 2 - 1
    untiled = vae.encode(video, chunk=None)
    for plan in some_plans(vae.encoding(video.shape, chunk, 8)):
        assert relative(vae._moments(video, chunk, plan)[0], untiled) < 1e-12, plan


def seen(layers: Sequence[Layer], x: Tensor, start: int, stop: int) -> tuple[int, int]:
    """The columns of x that decide columns [start, stop) of the result, by the gradient."""
    x.requires_grad_()
    y = Stream().run(layers, x)
    (gradient,) = torch.autograd.grad(y[..., start:stop].square().sum(), x)
    columns = gradient.abs().amax((0, 1, 2, 3)).nonzero().flatten()
    return int(columns[0]), int(columns[-1]) + 1


def test_the_reach_of_the_decoder_is_exact(vae: VAE) -> None:
    job = vae.decoding((1, 4, 1, 1, 23), 1, 8)
    for level, cut in enumerate(job.cuts()):
        block, width = vae.decoder.up_blocks[level], 23 * 2**level
        x = torch.randn(1, block.resnets[0].conv1.in_channels, 1, 2, width, dtype=torch.float64)
        scale = vae.spatial_factor // 2**level
        for start in (0, 9 * scale, 10 * scale - 1, 23 * scale - 1):
            lo, hi = reach_through(job.layers[cut:], (start, start + 1))
            assert seen(job.layers[cut:], x.clone(), start, start + 1) == (max(lo, 0), min(hi, width))


def test_the_reach_of_the_encoder_is_exact(vae: VAE) -> None:
    width = 23 * vae.spatial_factor
    job = vae.encoding((1, 3, 1, vae.spatial_factor, width), 1, 8)
    x = torch.rand(1, 3, 1, vae.spatial_factor, width, dtype=torch.float64) - 0.5
    for cut in job.cuts():
        for start, stop in ((0, 1), (9, 11), (22, 23)):
            lo, hi = reach_through(job.layers[:cut], (start, stop))
            assert seen(job.layers[:cut], x.clone(), start, stop) == (max(lo, 0), min(hi, width))


@pytest.mark.parametrize("parts", [1, 2, 5, 23])
def test_windows_cover_the_frame_once(vae: VAE, parts: int) -> None:
    width = 23 * vae.spatial_factor
    job = vae.encoding((1, 3, 1, vae.spatial_factor, width), 1, 8)
    cut = job.cuts()[-1]
    found = windows(job.layers[:cut], width, 23, parts)
    assert [i for w in found for i in range(w.write.start, w.write.stop)] == list(range(23))
    for w in found:
        assert w.keep.stop - w.keep.start == w.write.stop - w.write.start
        assert w.read.start % vae.spatial_factor == w.read.stop % vae.spatial_factor == 0


def test_layers_that_see_everything_are_not_tiled(vae: VAE) -> None:
    with pytest.raises(TypeError, match="MidBlock cannot run on tiles"):
        reach_through([vae.decoder.mid_block], (0, 1))
