"""The diffusion transformer, in the shape of the Wan family.

Letters: B samples, C latent channels, T H W latent grid, L tokens (t, h, w order), D width, N heads, K head size,
M text tokens, U distinct timesteps. Parameter names are those of diffusers' `WanTransformer3DModel`, so a public
checkpoint loads without renaming. Wan 2.1 gives the model one timestep per sample, Wan 2.2 TI2V one per token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pysora import ops
from pysora.models.positions import rope_tables, sinusoid
from pysora.models.projection import Attend, Layer, Projection

CLASS_NAME = "WanTransformer3DModel"


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Shape of a DiT: the fields of a transformer's config.json in the diffusers layout.

    `image_dim`, `added_kv_proj_dim` and `pos_embed_seq_len` belong to image-conditioned checkpoints, which are refused.
    Raises ValueError where a value is out of range or asks for what this model does not have.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str = "rms_norm_across_heads"
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or not 1 <= value <= 1 << 20):
                raise ValueError(f"{field.name} must be an integer from 1 to {1 << 20}, got {value!r}")
        if type(self.cross_attn_norm) is not bool:
            raise ValueError(f"cross_attn_norm must be true or false, got {self.cross_attn_norm!r}")
        patch = self.patch_size if isinstance(self.patch_size, tuple) else ()
        if len(patch) != 3 or any(type(p) is not int or not 1 <= p <= 64 for p in patch):
            raise ValueError(f"patch_size must be three integers from 1 to 64, got {self.patch_size!r}")
        if self.num_layers > 1024:
            raise ValueError(f"num_layers must be at most 1024, got {self.num_layers}")
        if self.attention_head_dim % 2 or self.attention_head_dim < 6:
            raise ValueError(f"attention_head_dim must be even and at least 6, got {self.attention_head_dim}")
        if self.qk_norm != "rms_norm_across_heads":
            raise ValueError(f"qk_norm must be 'rms_norm_across_heads', got {self.qk_norm!r}")
        if not isinstance(self.eps, float) or not 0.0 < self.eps < 1.0:
            raise ValueError(f"eps must lie between 0 and 1, got {self.eps!r}")
        for name in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} = {getattr(self, name)!r}: image-conditioned checkpoints are not supported")

    @property
    def width(self) -> int:
        """D, the width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiTConfig:
        """Read a config.json; keys with a leading underscore are notes of the writer. ValueError on unknown keys."""
        known = {field.name for field in dataclasses.fields(cls)}
        given = {key: value for key, value in values.items() if not key.startswith("_")}
        unknown = sorted(key for key, value in given.items() if key not in known and value is not None)
        if unknown:
            raise ValueError(f"the transformer's config has keys that are not supported: {', '.join(unknown)}")
        given = {key: value for key, value in given.items() if key in known}
        if isinstance(given.get("patch_size"), list):
            given["patch_size"] = tuple(given["patch_size"])
        if given.get("out_channels", 1) is None:
            given["out_channels"] = given.get("in_channels", cls.in_channels)
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """The config.json that `from_dict` and diffusers read."""
        return {"_class_name": CLASS_NAME, **dataclasses.asdict(self), "patch_size": list(self.patch_size)}


@dataclasses.dataclass(frozen=True)
class TextContext:
    """Keys and values of the text for every layer, made once per run by `DiT.encode_text`.

    keys, values: one [B, R, N, K] per layer in the model's dtype; R counts the text tokens and the row of the padding.
    bias: [B, R], at least fp32, added to the scores; None where no sample is padded.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor | None

    def joined(self, other: TextContext) -> TextContext:
        """The texts of both, one after the other in the batch; rows that only one of them has are hidden."""
        R = max(self.keys[0].shape[1], other.keys[0].shape[1])

        def join(pair: tuple[Tensor, Tensor]) -> Tensor:
            return torch.cat([F.pad(t, (0, 0, 0, 0, 0, R - t.shape[1])) for t in pair])

        keys = tuple(map(join, zip(self.keys, other.keys, strict=True)))
        values = tuple(map(join, zip(self.values, other.values, strict=True)))
        return TextContext(keys, values, torch.cat([self._bias(R), other._bias(R)]))

    def _bias(self, rows: int) -> Tensor:
        """[B, rows]: -inf for rows that are not there."""
        (B, R), dtype = self.keys[0].shape[:2], torch.promote_types(self.keys[0].dtype, torch.float32)
        bias = self.keys[0].new_zeros(B, R, dtype=dtype) if self.bias is None else self.bias
        return F.pad(bias, (0, rows - R), value=-math.inf)


@dataclasses.dataclass(frozen=True)
class Modulation:
    """Time conditioning. table: [U, 6, D] or [U, 2, D]; index: int32 [B, L], the table's row of each token, or None."""

    table: Tensor
    index: Tensor | None


class TwoLinears(nn.Module):
    """Parameters of an embedder: linear_1, an activation, linear_2."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)


class ConditionEmbedder(nn.Module):
    """Embeds timesteps and text."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        self.time_embedder = TwoLinears(config.freq_dim, config.width)
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder = TwoLinears(config.text_dim, config.width)

    def embed_time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps [U] -> (embedding [U, D], modulation of the blocks [U, 6, D]), outside of autocast."""
        # Few rows, and every token of every layer depends on them: autocast would save nothing and round much.
        with torch.autocast(timesteps.device.type, enabled=False):
            first, second, project = self.time_embedder.linear_1, self.time_embedder.linear_2, self.time_proj
            x = sinusoid(timesteps, self.freq_dim).to(first.weight.dtype)
            x = F.silu(ops.linear(x, first.weight, first.bias))
            x = ops.linear(x, second.weight, second.bias)
            table = ops.linear(F.silu(x.to(project.weight.dtype)), project.weight, project.bias)
            return x, table.unflatten(1, (6, -1))

    def embed_text(self, rows: Tensor) -> Tensor:
        """Text rows [B, R, text_dim] -> [B, R, D]."""
        first, second = self.text_embedder.linear_1, self.text_embedder.linear_2
        hidden = ops.linear(rows, first.weight, first.bias, epilogue="gelu")
        return ops.linear(hidden, second.weight, second.bias)


def _modulation_table(rows: int, width: int) -> nn.Parameter:
    """`[1, rows, width]`, random with deviation width**-0.5."""
    # Uniform: on the meta device, where a checkpoint's model begins, normal values import torch's compiler for seconds.
    bound = (3 / width) ** 0.5
    return nn.Parameter(torch.empty(1, rows, width).uniform_(-bound, bound))


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys (over all heads' channels together)."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.eps = eps
        self.to_q = Projection(width, width)
        self.to_k = Projection(width, width)
        self.to_v = Projection(width, width)
        self.to_out = nn.ModuleList([Projection(width, width)])
        self.norm_q = nn.RMSNorm(width, eps=eps)
        self.norm_k = nn.RMSNorm(width, eps=eps)
        self.attention = Attend()

    def _split(self, x: Tensor, projection: Layer) -> Tensor:
        heads: Tensor = projection(x).unflatten(-1, (self.heads, -1))
        return heads

    def queries(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """[B, L, D] -> [B, L, N, K], normalised and rotated."""
        cos, sin = rope if rope is not None else (None, None)
        return ops.qk_norm_rope(self._split(x, self.to_q), self.norm_q.weight, cos, sin, eps=self.eps)

    def keys(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """[B, L, D] -> [B, L, N, K], normalised and rotated."""
        cos, sin = rope if rope is not None else (None, None)
        return ops.qk_norm_rope(self._split(x, self.to_k), self.norm_k.weight, cos, sin, eps=self.eps)

    def values(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, N, K]."""
        return self._split(x, self.to_v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
        """q [B, L, N, K], k and v [B, R, N, K] -> [B, L, D]."""
        out = cast(Layer, self.to_out[0])
        return out(self.attention(q, k, v, key_bias).flatten(2))


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        up = nn.Module()
        up.proj = Projection(width, hidden)
        self.net = nn.ModuleList([up, nn.Identity(), Projection(hidden, width)])

    def forward(self, x: Tensor) -> Tensor:
        up, down = cast(Layer, self.net[0].proj), cast(Layer, self.net[2])
        return down(up(x, epilogue="gelu"))


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and the last are modulated by the timestep."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, heads, eps = config.width, config.num_attention_heads, config.eps
        self.eps = eps
        self.attn1 = Attention(width, heads, eps)
        self.attn2 = Attention(width, heads, eps)
        self.norm2 = nn.LayerNorm(width, eps) if config.cross_attn_norm else None
        self.ffn = FeedForward(width, config.ffn_dim)
        self.scale_shift_table = _modulation_table(6, width)

    def forward(
        self, x: Tensor, time: Modulation, rope: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor, Tensor | None]
    ) -> Tensor:
        """x [B, L, D], time [U, 6, D] (shift, scale, gate; twice), rope 2 [L, K/2], text (k, v, bias) -> [B, L, D]."""
        table, index = self.scale_shift_table + time.table.to(self.scale_shift_table.dtype), time.index
        h = autocast(ops.adaln(x, table[:, 0:2], index, eps=self.eps))
        h = self.attn1.attend(self.attn1.queries(h, rope), self.attn1.keys(h, rope), self.attn1.values(h))
        x = ops.gate_residual(x, h, table[:, 2], index)

        h = x if self.norm2 is None else ops.adaln(x, gain=self.norm2.weight, bias=self.norm2.bias, eps=self.eps)
        keys, values, key_bias = text
        x = x + self.attn2.attend(self.attn2.queries(h), keys, values, key_bias)

        h = self.ffn(ops.adaln(x, table[:, 3:5], index, eps=self.eps))
        return ops.gate_residual(x, h, table[:, 5], index)


class DiT(nn.Module):
    """Predicts the velocity of noisy latents: spacetime patches, `num_layers` blocks, patches back."""

    config_class = DiTConfig
    # Small, and what they hold is added to or multiplied with every token: fp32 also in a half-precision model.
    keep_fp32 = ("time_embedder", "scale_shift_table", "norm2")

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embedding = nn.Conv3d(config.in_channels, width, config.patch_size, config.patch_size)
        self.condition_embedder = ConditionEmbedder(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.proj_out = nn.Linear(width, config.out_channels * math.prod(config.patch_size))
        self.scale_shift_table = _modulation_table(2, width)

    def grid(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Token grid (t, h, w) of latents of `shape` [B, C, T, H, W]. ValueError where the patch does not divide it."""
        if len(shape) != 5 or shape[1] != self.config.in_channels:
            raise ValueError(f"latents must be [B, {self.config.in_channels}, T, H, W], got {tuple(shape)}")
        sizes, patch = tuple(shape[2:]), self.config.patch_size
        if any(size < 1 or size % p for size, p in zip(sizes, patch, strict=True)):
            raise ValueError(f"latents' T, H, W must be multiples of the patch {patch}, got {sizes}")
        t, h, w = (size // p for size, p in zip(sizes, patch, strict=True))
        if max(t, h, w) > self.config.rope_max_seq_len:
            raise ValueError(f"the token grid {(t, h, w)} exceeds rope_max_seq_len = {self.config.rope_max_seq_len}")
        return t, h, w

    def encode_text(
        self, prompt_embeds: Tensor, lengths: Tensor | Sequence[int], text_length: int = 512
    ) -> TextContext:
        """Keys and values of the text for every layer: what the blocks attend to, the same at every step.

        prompt_embeds: [B, M, text_dim], M <= text_length; rows at and past a sample's length are taken as zero.
        lengths: [B] true lengths, 0..M.
        text_length: the number of rows that the model was trained to attend to (zero rows included, no mask).

        The text_length - n zero rows of a sample stay identical through projection, key and value, so one row whose
        score is raised by log(text_length - n) stands for all of them, exactly.
        Raises ValueError where shapes or lengths do not fit.
        """
        counts = [int(n) for n in lengths]
        shape, width = tuple(prompt_embeds.shape), self.config.text_dim
        if len(shape) != 3 or shape[0] != len(counts) or shape[1] > text_length or shape[2] != width:
            raise ValueError(f"prompt_embeds must be [{len(counts)}, M <= {text_length}, {width}], got {shape}")
        if not all(0 <= n <= shape[1] for n in counts):
            raise ValueError(f"lengths must lie in 0..{shape[1]}, got {counts}")
        device, dtype = prompt_embeds.device, self.proj_out.weight.dtype
        bias = padding_bias(counts, text_length)
        if bias is not None:
            bias = bias.to(device, torch.promote_types(dtype, torch.float32))
        count = torch.tensor(counts, device=device)[:, None]
        R = max(n + (n < text_length) for n in counts)
        rows = F.pad(prompt_embeds[:, :R], (0, 0, 0, max(0, R - prompt_embeds.shape[1])))
        rows = rows.masked_fill((torch.arange(R, device=device) >= count)[..., None], 0.0)
        embedded = self.condition_embedder.embed_text(rows.to(dtype))
        readers = [cast(Block, block).attn2 for block in self.blocks]
        keys = tuple(reader.keys(embedded) for reader in readers)
        values = tuple(reader.values(embedded) for reader in readers)
        return TextContext(keys, values, bias)

    def _modulations(self, timestep: Tensor, batch: int, tokens: int) -> tuple[Modulation, Modulation]:
        """(of the blocks [U, 6, D], of the last layer [U, 2, D]); each distinct timestep is embedded once."""
        index = None
        if timestep.shape == (batch, tokens):
            timestep, inverse = torch.unique(timestep, return_inverse=True)
            index = inverse.to(torch.int32) if len(timestep) > 1 else None
        elif timestep.shape != (batch,):
            raise ValueError(f"timestep must be [{batch}] or [{batch}, {tokens}], got {tuple(timestep.shape)}")
        embedding, table = self.condition_embedder.embed_time(timestep)
        return Modulation(table, index), Modulation(self.scale_shift_table + embedding[:, None], index)

    def rope(self, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """(cos, sin) fp32 [L, K/2] of the rotary positions of the tokens of `grid`."""
        return rope_tables(grid, self.config.attention_head_dim, device)

    def forward(self, latents: Tensor, timestep: Tensor, context: TextContext) -> Tensor:
        """Velocity of the latents.

        latents: [B, C, T, H, W], any float dtype (cast to the model's).
        timestep: [B], or [B, L] with one timestep per token (t, h, w order); 0 (clean) to 1000 (noise).
        context: from `encode_text`, for the same B.
        Returns [B, out_channels, T, H, W] in the model's dtype. Raises ValueError where shapes do not fit.
        """
        grid, dtype = self.grid(latents.shape), self.patch_embedding.weight.dtype
        blocks_time, last_time = self._modulations(timestep, latents.shape[0], math.prod(grid))
        rope = self.rope(grid, latents.device)
        x = ops.patch_embed(latents.to(dtype), self.patch_embedding.weight, self.patch_embedding.bias)
        # Autocast leaves a half-precision x; the residual stream keeps the dtype of the parameters.
        x = x.to(dtype)
        for block, keys, values in zip(self.blocks, context.keys, context.values, strict=True):
            x = block(x, blocks_time, rope, (keys, values, context.bias))
        x = ops.adaln(x, last_time.table, last_time.index, eps=self.config.eps)
        x = ops.linear(x, self.proj_out.weight, self.proj_out.bias)
        return ops.unpatchify(x, grid, self.config.patch_size)


def autocast(x: Tensor) -> Tensor:
    """`x` as autocast would cast it for each of several linear layers, once for all of them."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def padding_bias(counts: Sequence[int], text_length: int) -> Tensor | None:
    """Bias float64 [B, R] of the keys of texts of `counts` tokens: 0, then log(text_length - n) once, then -inf."""
    if all(n == text_length for n in counts):
        return None
    rows = [[0.0] * n + [math.log(text_length - n) for _ in range(n, min(n + 1, text_length))] for n in counts]
    R = max(len(row) for row in rows)
    return torch.tensor([row + [-math.inf] * (R - len(row)) for row in rows], dtype=torch.float64)
