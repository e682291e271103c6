"""The autoencoder: parity with diffusers in both forms, and the walk over time in chunks of any length."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from pysora.checkpoint import load_module, save_module
from pysora.models.vae import VAE, VAEConfig
from pysora.models.vae_blocks import average_down, repeat_up

WAN_21 = {
    "base_dim": 6,
    "z_dim": 4,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [1.0, 2.0, 0.5, 1.5],
}
WAN_22 = {
    **WAN_21,
    "base_dim": 8,
    "decoder_base_dim": 12,
    "num_res_blocks": 1,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
}
FORMS = {"2.1": WAN_21, "2.2": WAN_22}
SHAPES = {"image": (1, 48, 80), "odd": (5, 80, 48), "longer": (13, 32, 64), "single cell": (9, 16, 16)}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: f"wan {form}")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The same random weights in diffusers' class and, through a saved folder, in ours."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(3)
    theirs = AutoencoderKLWan(**FORMS[request.param]).eval()
    folder = tmp_path_factory.mktemp("vae")
    theirs.save_pretrained(folder)
    return theirs, load_module(VAE, folder)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_parity_with_diffusers(pair, shape: tuple[int, int, int]) -> None:
    theirs, ours = pair
    video = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = theirs.encode(video).latent_dist.mode()
        assert relative(ours.encode(video), expected) < 1e-5
        assert relative(ours.decode(expected), theirs.decode(expected).sample) < 1e-5


@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_chunks_of_any_length_give_the_same(pair, chunk: int) -> None:
    _, vae = pair
    video = torch.rand(1, 3, 13, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        whole = vae.encode(video, chunk=None)
        assert relative(vae.encode(video, chunk=chunk), whole) < 1e-5
        frames = list(vae.decode_frames(whole, chunk=chunk))
        assert len(frames) == -(-4 // chunk)
        assert relative(torch.cat(frames, 2), vae.decode(whole, chunk=4)) < 1e-5


def test_a_start_is_encoded_as_the_shorter_clip(pair) -> None:
    _, vae = pair
    video = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        assert relative(vae.encode(video)[:, :, :2], vae.encode(video[:, :, :5])) < 1e-5


def test_bf16_is_as_near_to_fp64_as_diffusers(pair) -> None:
    theirs, ours = pair
    exact = copy.deepcopy(ours).double()
    half = [copy.deepcopy(model).bfloat16() for model in (ours, theirs)]
    squares = torch.zeros(2, 2, dtype=torch.float64)
    for seed in range(5):
        video = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
        with torch.no_grad():
            z = exact.encode(video)
            encoded = half[0].encode(video.bfloat16()), half[1].encode(video.bfloat16()).latent_dist.mode()
            frames = exact.decode(z)
            decoded = half[0].decode(z.bfloat16()), half[1].decode(z.bfloat16()).sample
        for i in range(2):
            squares[0, i] += (encoded[i].double() - z).square().mean()
            squares[1, i] += (decoded[i].double() - frames).square().mean()
    errors = squares.sqrt()
    assert bool((errors[:, 0] <= 1.1 * errors[:, 1]).all()), errors


def test_normalize_and_back(pair) -> None:
    _, vae = pair
    z = torch.randn(1, 4, 2, 3, 3)
    assert torch.allclose(vae.normalize(z)[0, 1], (z[0, 1] + 0.2) / 2)
    assert torch.allclose(vae.denormalize(vae.normalize(z)), z, atol=1e-6)


def test_gradients_reach_every_parameter() -> None:
    vae = VAE(VAEConfig.from_dict(WAN_22))
    mean, log_variance = vae.moments(torch.rand(1, 3, 5, 32, 32))
    (vae.decode(mean, chunk=2).sum() + log_variance.sum()).backward()
    assert [name for name, p in vae.named_parameters() if p.grad is None] == []


def test_save_and_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = VAE(VAEConfig.from_dict(WAN_22))
    save_module(vae, tmp_path)
    again = load_module(VAE, tmp_path)
    assert again.config == vae.config
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))


def test_shortcuts_are_means_and_copies() -> None:
    x = torch.arange(2.0 * 3 * 4 * 4).view(1, 2, 3, 4, 4)
    down = average_down(x, 2, time=2, space=2)
    assert down.shape == (1, 2, 2, 2, 2)
    # The first frame stands beside a frame of zeros.
    assert down[0, 0, 0, 0, 0] == x[0, 0, 0, :2, :2].sum() / 8
    up = repeat_up(x, 2, time=2, space=2, first=True)
    assert up.shape == (1, 2, 5, 8, 8)
    assert torch.equal(up.sum(), 4 * (2 * x.sum() - x[:, :, 0].sum()))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 5, 32, 32), r"video: needs shape \[B, 3, F, H, W\]"),
        ((1, 3, 4, 32, 32), r"video: needs 1 \+ 4n frames, got 4"),
        ((1, 3, 5, 32, 33), "video: needs H and W in multiples of 16, got 32x33"),
        ((1, 3, 0, 32, 32), r"video: needs 1 \+ 4n frames, got 0"),
    ],
)
def test_wrong_videos_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(VAEConfig.from_dict(WAN_22)).encode(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_scales": [0.5]}, "attn_scales"),
        ({"dropout": 0.1}, "dropout"),
        ({"latents_std": [1.0]}, "latents_std: needs z_dim"),
        ({"temperal_downsample": [True]}, "temperal_downsample: needs one entry per downsampling"),
        ({"colour": "red"}, r"unknown fields \['colour'\]"),
    ],
)
def test_wrong_configurations_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAEConfig.from_dict({**WAN_22, **change})


def test_wrong_latents_are_refused() -> None:
    vae = VAE(VAEConfig.from_dict(WAN_22))
    with pytest.raises(ValueError, match=r"latents: needs shape \[B, 4, T, H, W\], got \[1, 5, 1, 2, 2\]"):
        vae.decode(torch.zeros(1, 5, 1, 2, 2))
