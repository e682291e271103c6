"""The transformer against diffusers' WanTransformer3DModel, its text padding, timesteps, gradients and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from pysora.checkpoint import CheckpointError, load_module, save_module
from pysora.models.dit import DiT, DiTConfig

pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = 24
SMALL = {
    "num_attention_heads": 2,
    "attention_head_dim": 20,
    "text_dim": TEXT,
    "freq_dim": 32,
    "ffn_dim": 56,
    "num_layers": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "wan2.1": {**SMALL, "in_channels": 4, "out_channels": 4},
    "wan2.2-ti2v": {**SMALL, "in_channels": 6, "out_channels": 6, "attention_head_dim": 16, "num_attention_heads": 3},
    "no-cross-norm": {**SMALL, "in_channels": 5, "out_channels": 3, "cross_attn_norm": False, "patch_size": (1, 1, 3)},
}
# Latents [T, H, W] whose token grids are odd, a single token, wide and tall.
SIZES = {
    "wan2.1": [(1, 2, 2), (3, 10, 6), (2, 2, 14)],
    "wan2.2-ti2v": [(1, 2, 2), (5, 6, 10), (2, 14, 2)],
    "no-cross-norm": [(3, 5, 9)],
}
CASES = [(family, size) for family, sizes in SIZES.items() for size in sizes]


def reference(family: str, seed: int = 0) -> WanTransformer3DModel:
    """A small diffusers model with every parameter away from its initial value."""
    torch.manual_seed(seed)
    model = WanTransformer3DModel(**FAMILIES[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def levels(family: str, batch: int, size: tuple[int, int, int], seed: int = 1) -> Tensor:
    """[B] timesteps, or for TI2V [B, L] with each latent frame's own and the first frame known (0)."""
    generator = torch.Generator().manual_seed(seed)
    if family != "wan2.2-ti2v":
        return torch.randint(0, 1000, (batch,), generator=generator).float()
    frames = torch.randint(1, 1000, (batch, size[0]), generator=generator).float()
    frames[:, 0] = 0
    return frames.repeat_interleave(size[1] * size[2] // 4, dim=1)


def inputs(family: str, size: tuple[int, int, int], batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(latents, timestep, text rows [B, 9, TEXT])."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, FAMILIES[family]["in_channels"], *size, generator=generator)
    return latents, levels(family, batch, size, seed), torch.randn(batch, 9, TEXT, generator=generator)


def padded(rows: Tensor, lengths: list[int], text_length: int) -> Tensor:
    """What diffusers attends to: zeros at and past each length, up to text_length rows."""
    out = rows.new_zeros(len(lengths), text_length, rows.shape[2])
    for b, n in enumerate(lengths):
        out[b, :n] = rows[b, :n]
    return out


def relative(got: Tensor, want: Tensor) -> float:
    return float(((got - want).abs().max() / want.abs().max()).detach())


@pytest.mark.parametrize(("family", "size"), CASES)
def test_parity(family: str, size: tuple[int, int, int], tmp_path: Path) -> None:
    theirs = reference(family)
    theirs.save_pretrained(tmp_path)
    ours = load_module(DiT, tmp_path)
    latents, timestep, rows = inputs(family, size)
    with torch.no_grad():
        want = theirs(latents, timestep, padded(rows, [4, 9], 512), return_dict=False)[0]
        got = ours(latents, timestep, ours.encode_text(rows, [4, 9]))
    assert got.shape == want.shape
    assert relative(got, want) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_opens_what_we_save(family: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    ours = DiT(DiTConfig(**FAMILIES[family]))
    save_module(ours, tmp_path)
    theirs = WanTransformer3DModel.from_pretrained(tmp_path)
    latents, timestep, rows = inputs(family, SIZES[family][-1])
    with torch.no_grad():
        want = theirs(latents, timestep, padded(rows, [0, 9], 16), return_dict=False)[0]
        got = ours(latents, timestep, ours.encode_text(rows, [0, 9], 16))
    assert relative(got, want) <= 1e-5


@pytest.mark.parametrize("lengths", [[0, 9], [9, 9], [5, 2], [1, 0]], ids=str)
@pytest.mark.parametrize("text_length", [9, 10, 512])
def test_text_padding_is_exact(lengths: list[int], text_length: int) -> None:
    """n + 1 rows with log(text_length - n) on the last equal text_length rows, in value and in gradient."""
    torch.manual_seed(3)
    dit = DiT(DiTConfig(**FAMILIES["wan2.1"])).double()
    latents, timestep, rows = inputs("wan2.1", (2, 4, 6))
    rows = rows.double().requires_grad_()
    # Longest possible lengths: nothing is padded, so every row is attended to one by one.
    plain = dit.encode_text(padded(rows, lengths, text_length), [text_length] * 2, text_length)
    short = dit.encode_text(rows, lengths, text_length)
    assert plain.bias is None
    assert plain.keys[0].shape[1] == text_length
    assert short.keys[0].shape[1] == max(n + (n < text_length) for n in lengths)
    outputs = [dit(latents.double(), timestep, context) for context in (short, plain)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12 * float(outputs[1].detach().abs().max()))
    short_grad, plain_grad = (torch.autograd.grad(out.square().sum(), rows)[0] for out in outputs)
    torch.testing.assert_close(short_grad, plain_grad, rtol=0, atol=1e-11 * float(plain_grad.abs().max()) + 1e-14)


def test_what_lies_past_the_length_does_not_matter() -> None:
    dit = DiT(DiTConfig(**FAMILIES["wan2.1"]))
    _, _, rows = inputs("wan2.1", (1, 2, 2))
    dirty = rows.clone()
    dirty[0, 4:] = float("nan")
    with torch.no_grad():
        for a, b in zip(dit.encode_text(rows, [4, 9]).keys, dit.encode_text(dirty, [4, 9]).keys, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("family", ["wan2.1", "wan2.2-ti2v"])
def test_batch_equals_each_sample_alone(family: str) -> None:
    torch.manual_seed(4)
    dit = DiT(DiTConfig(**FAMILIES[family])).double()
    latents, timestep, rows = (t.double() for t in inputs(family, (3, 4, 6), batch=3))
    lengths = [2, 9, 0]
    with torch.no_grad():
        together = dit(latents, timestep, dit.encode_text(rows, lengths))
        for b in range(3):
            context = dit.encode_text(rows[b : b + 1], lengths[b : b + 1])
            alone = dit(latents[b : b + 1], timestep[b : b + 1], context)
            torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=1e-12)


def test_timestep_per_token_equals_timestep_per_sample() -> None:
    torch.manual_seed(5)
    dit = DiT(DiTConfig(**FAMILIES["wan2.1"])).double()
    latents, _, rows = inputs("wan2.1", (2, 4, 6))
    context = dit.encode_text(rows.double(), [3, 3])
    for levels_ in ([7.0, 7.0], [7.0, 912.5]):
        timestep = torch.tensor(levels_)
        want = dit(latents, timestep, context)
        got = dit(latents, timestep[:, None].expand(2, 12), context)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_everything(family: str) -> None:
    torch.manual_seed(6)
    dit = DiT(DiTConfig(**FAMILIES[family]))
    size = SIZES[family][-1]
    latents, timestep, rows = inputs(family, size)
    latents.requires_grad_()
    rows.requires_grad_()
    dit(latents, timestep, dit.encode_text(rows, [4, 9])).square().mean().backward()
    tensors = {"latents": latents, "rows": rows, **dict(dit.named_parameters())}
    # A bias of the keys shifts all scores of a query alike only where the norm lets it: none is exempt here.
    for name, tensor in tensors.items():
        assert tensor.grad is not None, name
        assert torch.isfinite(tensor.grad).all() and tensor.grad.abs().max() > 0, name


@pytest.mark.parametrize("family", ["wan2.1", "wan2.2-ti2v"])
def test_gradient_is_the_slope(family: str) -> None:
    """Along a random direction, against a central difference in float64."""
    torch.manual_seed(7)
    dit = DiT(DiTConfig(**FAMILIES[family])).double()
    latents, timestep, rows = inputs(family, (2, 4, 2))
    latents, rows = latents.double(), rows.double()

    def loss() -> Tensor:
        return dit(latents, timestep, dit.encode_text(rows, [4, 9], 32)).sin().sum()

    parameters = list(dit.parameters())
    directions = [torch.randn_like(p) for p in parameters]
    slopes = torch.autograd.grad(loss(), parameters)
    want = sum(float((g * d).sum()) for g, d in zip(slopes, directions, strict=True))
    step, values = 1e-6, []
    with torch.no_grad():
        for sign in (1.0, -2.0):
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=sign * step)
            values.append(float(loss()))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(want, rel=1e-5)


def test_autocast_keeps_the_residual_stream_in_fp32() -> None:
    torch.manual_seed(8)
    dit = DiT(DiTConfig(**FAMILIES["wan2.2-ti2v"]))
    latents, timestep, rows = inputs("wan2.2-ti2v", (3, 4, 6))
    seen = []
    dit.blocks[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    want = dit(latents, timestep, dit.encode_text(rows, [4, 9]))
    with torch.autocast("cpu", torch.bfloat16):
        got = dit(latents, timestep, dit.encode_text(rows, [4, 9]))
    got.float().square().mean().backward()
    assert seen == [torch.float32, torch.float32]
    assert relative(got.float(), want) < 0.05
    assert all(torch.isfinite(p.grad).all() for p in dit.parameters() if p.grad is not None)


def test_half_precision_model_keeps_the_small_modules_in_fp32(tmp_path: Path) -> None:
    reference("wan2.1").save_pretrained(tmp_path)
    ours = load_module(DiT, tmp_path, torch.bfloat16)
    theirs = WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert {k: v.dtype for k, v in ours.state_dict().items()} == {k: v.dtype for k, v in theirs.state_dict().items()}


def test_tables_made_for_inference_serve_training() -> None:
    dit = DiT(DiTConfig(**FAMILIES["wan2.1"]))
    # A grid that no other test has, so that its tables are made under inference_mode.
    latents, timestep, rows = inputs("wan2.1", (1, 22, 4))
    with torch.inference_mode():
        dit(latents, timestep, dit.encode_text(rows, [4, 9]))
    dit(latents, timestep, dit.encode_text(rows, [4, 9])).sum().backward()


def test_compiles_to_one_graph() -> None:
    torch.manual_seed(9)
    dit = DiT(DiTConfig(**FAMILIES["wan2.1"]))
    latents, timestep, rows = inputs("wan2.1", (2, 4, 6))
    with torch.no_grad():
        context = dit.encode_text(rows, [4, 9])
        compiled = torch.compile(dit, backend="aot_eager", fullgraph=True)
        assert relative(compiled(latents, timestep, context), dit(latents, timestep, context)) <= 1e-6


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_dim": 1280}, "image_dim = 1280: image-conditioned"),
        ({"added_kv_proj_dim": 64}, "added_kv_proj_dim"),
        ({"vace_layers": [0, 2]}, "not supported: vace_layers"),
        ({"qk_norm": "rms_norm"}, "qk_norm must be"),
        ({"num_layers": 10**9}, "num_layers must be"),
        ({"num_layers": "2"}, "num_layers must be an integer"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"attention_head_dim": 7}, "attention_head_dim must be even"),
        ({"patch_size": [1, 2]}, "patch_size must be three"),
        ({"patch_size": 2}, "patch_size must be three"),
        ({"eps": 0}, "eps must lie"),
        ({"cross_attn_norm": "yes"}, "cross_attn_norm"),
    ],
    ids=str,
)
def test_refused_configurations(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DiTConfig.from_dict({**DiTConfig(**FAMILIES["wan2.1"]).to_dict(), **changes})


def test_configuration_round_trip() -> None:
    config = DiTConfig(**FAMILIES["no-cross-norm"])
    assert DiTConfig.from_dict(config.to_dict()) == config
    assert DiTConfig.from_dict({**config.to_dict(), "out_channels": None}).out_channels == config.in_channels


def test_refused_inputs(tmp_path: Path) -> None:
    dit = DiT(DiTConfig(**{**FAMILIES["wan2.1"], "rope_max_seq_len": 8}))
    latents, timestep, rows = inputs("wan2.1", (1, 4, 4))
    context = dit.encode_text(rows, [4, 9])
    for bad, reason in (
        (latents[:, :3], r"latents must be \[B, 4, T, H, W\]"),
        (latents[0], r"latents must be"),
        (latents[..., :3], "multiples of the patch"),
        (torch.zeros(2, 4, 9, 2, 2), "exceeds rope_max_seq_len = 8"),
    ):
        with pytest.raises(ValueError, match=reason):
            dit(bad, timestep, context)
    with pytest.raises(ValueError, match=r"timestep must be \[2\] or \[2, 4\], got \(2, 3\)"):
        dit(latents, torch.zeros(2, 3), context)
    for arguments in ((rows, [4]), (rows, [4, 10]), (rows, [-1, 9]), (rows, [4, 9], 8), (rows[..., 1:], [4, 9])):
        with pytest.raises(ValueError, match=r"prompt_embeds must be|lengths must lie"):
            dit.encode_text(*arguments)
    save_module(dit, tmp_path)
    (tmp_path / "config.json").write_text('{"num_layers": 3}')
    with pytest.raises(CheckpointError, match="missing"):
        load_module(DiT, tmp_path)
