"""The causal video autoencoder of the Wan family (2.1 and 2.2 forms).

Source of the architecture: Wan (arXiv:2503.20314, section 4.1; Apache-2.0) and the checkpoint layout of diffusers'
`AutoencoderKLWan`, whose parameter names are kept so that public weights load without renaming.

The walk over time is written once: every layer takes a chunk of frames and a `Stream`, which carries the frames that
the layer's causal kernel still needs. A whole clip in one chunk (training) and one latent frame at a time (low memory)
are the same code and give the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pysora import ops


@dataclass(frozen=True)
class VAEConfig:
    """The fields of a diffusers `vae/config.json`; `temperal_downsample` is spelled as there."""

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_scales: tuple[float, ...] = ()
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    dropout: float = 0.0
    latents_mean: tuple[float, ...] = field(default=(0.0,) * 16)
    latents_std: tuple[float, ...] = field(default=(1.0,) * 16)
    is_residual: bool = False
    in_channels: int = 3
    out_channels: int = 3
    patch_size: int | None = None
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 8

    def __post_init__(self) -> None:
        if self.attn_scales:
            raise ValueError(f"attn_scales: only () is supported, got {self.attn_scales}")
        if self.dropout:
            raise ValueError(f"dropout: only 0 is supported, got {self.dropout}")
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temperal_downsample: needs one entry per downsampling ({len(self.dim_mult) - 1}), "
                f"got {len(self.temperal_downsample)}"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(f"{name}: needs z_dim ({self.z_dim}) numbers, got {len(getattr(self, name))}")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> VAEConfig:
        """Read a checkpoint's config.json; keys that start with an underscore are ignored, unknown ones refused."""
        known = {f.name for f in fields(cls)}
        given = {k: v for k, v in config.items() if not k.startswith("_") and k != "clip_output"}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"vae config: unknown fields {unknown}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The config.json of this model."""
        return {"_class_name": "AutoencoderKLWan", **asdict(self)}


class Stream:
    """What a causal walk over frames carries from one chunk to the next, per layer."""

    def __init__(self) -> None:
        self.first = True
        self._tail: dict[nn.Module, Tensor] = {}

    def swap(self, layer: nn.Module, tail: Tensor) -> Tensor | None:
        """Keep `tail` for the layer's next chunk and return what its previous chunk left, None at the first."""
        previous = self._tail.get(layer)
        self._tail[layer] = tail
        return previous

    def tail(self, layer: nn.Module) -> Tensor | None:
        """What the layer's previous chunk left."""
        return self._tail.get(layer)


class CausalConv3d(nn.Conv3d):
    """Convolution over (T, H, W) that sees no later frame; odd kernels, stride 1, output as large as the input."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel)

    def forward(self, x: Tensor, stream: Stream, norm: Tensor | None = None, residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
        cache = stream.tail(self)
        y, tail = ops.causal_conv3d(x, self.weight, self.bias, cache, norm_gamma=norm, residual=residual)
        stream.swap(self, tail)
        return y


class RMSNorm(nn.Module):
    """Holder of the gain of a root-mean-square norm over channels; `gamma` has the checkpoint's shape."""

    def __init__(self, channels: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * spatial_dims))

    @property
    def gain(self) -> Tensor:
        """`[C]`."""
        return self.gamma.flatten()


class ResidualBlock(nn.Module):
    """Two times norm, SiLU, convolution; beside it the identity or a 1x1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, 3)
        self.norm2 = RMSNorm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, 3)
        self.conv_shortcut = (
            CausalConv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        shortcut = x if isinstance(self.conv_shortcut, nn.Identity) else self.conv_shortcut(x, stream)
        h = self.conv1(x, stream, norm=self.norm1.gain)
        return self.conv2(h, stream, norm=self.norm2.gain, residual=shortcut)  # type: ignore[no-any-return]


class FrameAttention(nn.Module):
    """Single-head attention over the pixels of each frame, with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        B, C, T, H, W = x.shape
        h = ops.norm_silu(x, self.norm.gain, silu=False)
        tokens = h.permute(0, 2, 3, 4, 1).reshape(B * T, H * W, C)
        qkv = F.linear(tokens, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        q, k, v = qkv.view(B * T, H * W, 3, 1, C).unbind(2)
        out = ops.spacetime_attention(q, k, v).reshape(B * T, H * W, C)
        out = F.linear(out, self.proj.weight.flatten(1), self.proj.bias)
        return out.view(B, T, H, W, C).permute(0, 4, 1, 2, 3) + x


class MidBlock(nn.Module):
    """Residual block, frame attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([FrameAttention(channels)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels), ResidualBlock(channels, channels)])

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.resnets[0](x, stream)
        return self.resnets[1](self.attentions[0](x), stream)  # type: ignore[no-any-return]


class Downsample(nn.Module):
    """Halve H and W; with `temporal` also T, where the first frame of all passes alone (1 + 2n frames -> 1 + n)."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        # Index 1: the checkpoint's index 0 is the padding, which has no weights.
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        conv = cast(nn.Conv2d, self.resample[1])
        frames = F.pad(x.transpose(1, 2).flatten(0, 1), (0, 1, 0, 1))
        x = F.conv2d(frames, conv.weight, conv.bias, stride=2).unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        if self.time_conv is None:
            return x
        last = stream.swap(self, x[:, :, -1:])
        if last is not None:
            return self.time_conv(torch.cat([last, x], 2))  # type: ignore[no-any-return]
        return torch.cat([x[:, :, :1], self.time_conv(x)], 2) if x.shape[2] > 1 else x


class Upsample(nn.Module):
    """Double H and W; with `temporal` also T, except for the first frame of all (1 + n frames -> 1 + 2n)."""

    def __init__(self, channels: int, out_channels: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(channels, out_channels, 3))
        self.time_conv = CausalConv3d(channels, channels * 2, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        if self.time_conv is not None:
            # The first frame is neither doubled nor seen by the second one: the kernel starts on zeros after it.
            head, rest = (x[:, :, :1], x[:, :, 1:]) if stream.first else (x[:, :, :0], x)
            if rest.shape[2]:
                pairs = self.time_conv(rest, stream).unflatten(1, (2, -1))
                x = torch.cat([head, pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], 2)
        conv = cast(nn.Conv2d, self.resample[1])
        return ops.causal_conv3d(x, conv.weight.unsqueeze(2), conv.bias, upsample=True)[0]


def average_down(x: Tensor, out_channels: int, time: int, space: int) -> Tensor:
    """Shortcut of the residual form: space-to-depth by (time, space, space), then means over groups of channels.

    `[B, C, T, H, W]` -> `[B, out_channels, ceil(T/time), H/space, W/space]`; T is filled up with zeros in front.
    """
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    B, C, T, H, W = x.shape
    x = x.view(B, C, T // time, time, H // space, space, W // space, space).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(B, out_channels, -1, T // time, H // space, W // space).mean(2)


def repeat_up(x: Tensor, out_channels: int, time: int, space: int, first: bool) -> Tensor:
    """Shortcut of the residual form: repeat channels, then depth-to-space by (time, space, space).

    `[B, C, T, H, W]` -> `[B, out_channels, T*time, H*space, W*space]`, less the first time-1 frames at the start.
    """
    B, C, T, H, W = x.shape
    x = x.repeat_interleave(out_channels * time * space * space // C, dim=1)
    x = x.view(B, out_channels, time, space, space, T, H, W).permute(0, 1, 5, 2, 6, 3, 7, 4)
    x = x.reshape(B, out_channels, T * time, H * space, W * space)
    return x[:, :, time - 1 :] if first else x


class ResidualDownBlock(nn.Module):
    """One level of the 2.2 encoder."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, down: bool, temporal: bool) -> None:
        super().__init__()
        self.out_channels, self.time, self.space = out_channels, 2 if temporal else 1, 2 if down else 1
        widths = [in_channels] + [out_channels] * blocks
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in itertools.pairwise(widths))
        self.downsampler = Downsample(out_channels, temporal) if down else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        shortcut = average_down(x, self.out_channels, self.time, self.space)
        for block in self.resnets:
            x = block(x, stream)
        return (x if self.downsampler is None else self.downsampler(x, stream)) + shortcut


class UpBlock(nn.Module):
    """One level of the decoder; the 2.2 form has a shortcut and keeps the channels when it upsamples."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, up: bool, temporal: bool, residual: bool
    ) -> None:
        super().__init__()
        self.out_channels, self.time, self.shortcut = out_channels, 2 if temporal else 1, residual and up
        widths = [in_channels] + [out_channels] * (blocks + 1)
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in itertools.pairwise(widths))
        self.upsampler: Upsample | None = None
        self.upsamplers: nn.ModuleList | None = None
        if up and residual:
            self.upsampler = Upsample(out_channels, out_channels, temporal)
        elif up:
            self.upsamplers = nn.ModuleList([Upsample(out_channels, out_channels // 2, temporal)])

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        start = x
        for block in self.resnets:
            x = block(x, stream)
        for upsample in [self.upsampler] if self.upsampler is not None else self.upsamplers or []:
            x = upsample(x, stream)
        return x + repeat_up(start, self.out_channels, self.time, 2, stream.first) if self.shortcut else x


class Encoder(nn.Module):
    """Frames `[B, C, F, H, W]` -> mean and log-variance `[B, 2z, T, H/s, W/s]`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_dim * m for m in (1, *config.dim_mult)]
        self.conv_in = CausalConv3d(config.in_channels, widths[0], 3)
        self.down_blocks = nn.ModuleList()
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            down = i < len(config.dim_mult) - 1
            temporal = down and config.temperal_downsample[i]
            if config.is_residual:
                self.down_blocks.append(ResidualDownBlock(a, b, config.num_res_blocks, down, temporal))
                continue
            for j in range(config.num_res_blocks):
                self.down_blocks.append(ResidualBlock(a if j == 0 else b, b))
            if down:
                self.down_blocks.append(Downsample(b, temporal))
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * config.z_dim, 3)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.conv_in(x, stream)
        for block in self.down_blocks:
            x = block(x, stream)
        x = self.mid_block(x, stream)
        return self.conv_out(x, stream, norm=self.norm_out.gain)  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Latents `[B, z, T, H, W]` -> frames `[B, C, F, H*s, W*s]`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        base = config.decoder_base_dim or config.base_dim
        widths = [base * m for m in (config.dim_mult[-1], *reversed(config.dim_mult))]
        temporal = [*reversed(config.temperal_downsample), False]
        self.conv_in = CausalConv3d(config.z_dim, widths[0], 3)
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList()
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            width = a // 2 if i and not config.is_residual else a
            up = i < len(config.dim_mult) - 1
            self.up_blocks.append(UpBlock(width, b, config.num_res_blocks, up, temporal[i], config.is_residual))
        self.norm_out = RMSNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], config.out_channels, 3)

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        x = self.mid_block(self.conv_in(x, stream), stream)
        for block in self.up_blocks:
            x = block(x, stream)
        return self.conv_out(x, stream, norm=self.norm_out.gain)  # type: ignore[no-any-return]


class VAE(nn.Module):
    """Encodes clips of 1 + 4n frames of any size that is a multiple of `spatial_factor`, and decodes them."""

    config_class = VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = CausalConv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell along H and W."""
        return self.config.scale_factor_spatial

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame after the first."""
        return self.config.scale_factor_temporal

    def moments(self, video: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents.

        video: `[B, 3, F, H, W]` in [-1, 1], F = 1 + temporal_factor*n; H, W multiples of spatial_factor.
        chunk: latent frames that are computed at a time; None takes the whole clip at once.
        returns: two `[B, z, T, H/s, W/s]`.
        """
        self._check_video(video)
        x = self.to_patches(video)
        stream, out, start = Stream(), [], 0
        T = (video.shape[2] - 1) // self.temporal_factor + 1
        for latent in range(0, T, chunk or T):
            stop = 1 + (min(latent + (chunk or T), T) - 1) * self.temporal_factor
            out.append(self.encoder(x[:, :, start:stop], stream))
            stream.first, start = False, stop
        mean, log_variance = self.quant_conv(torch.cat(out, 2), Stream()).chunk(2, dim=1)
        return mean, log_variance

    def encode(self, video: Tensor, chunk: int | None = 1) -> Tensor:
        """The mode of the latents, not normalised: see `moments` for the arguments."""
        return self.moments(video, chunk)[0]

    def decode_frames(self, latents: Tensor, chunk: int = 1) -> Iterator[Tensor]:
        """Yield the frames of `chunk` latent frames at a time, `[B, 3, f, H*s, W*s]`, clamped to [-1, 1].

        latents: `[B, z, T, H, W]`, not normalised.
        """
        if latents.ndim != 5 or latents.shape[1] != self.config.z_dim or not latents.shape[2]:
            raise ValueError(f"latents: needs shape [B, {self.config.z_dim}, T, H, W], got {list(latents.shape)}")
        x = self.post_quant_conv(latents, Stream())
        stream = Stream()
        for start in range(0, x.shape[2], chunk):
            frames = self.decoder(x[:, :, start : start + chunk], stream)
            stream.first = False
            yield self.to_video(frames).clamp(-1, 1)

    def decode(self, latents: Tensor, chunk: int = 1) -> Tensor:
        """All frames of `decode_frames`, `[B, 3, F, H*s, W*s]`."""
        return torch.cat(list(self.decode_frames(latents, chunk)), 2)

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents of the autoencoder -> what the transformer sees: (z - mean) / std per channel."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        mean = torch.tensor(self.config.latents_mean, dtype=like.dtype, device=like.device).view(shape)
        std = torch.tensor(self.config.latents_std, dtype=like.dtype, device=like.device).view(shape)
        return mean, std

    def _check_video(self, video: Tensor) -> None:
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"video: needs shape [B, 3, F, H, W], got {list(video.shape)}")
        F_, H, W = video.shape[2:]
        if F_ < 1 or (F_ - 1) % self.temporal_factor:
            raise ValueError(f"video: needs 1 + {self.temporal_factor}n frames, got {F_}")
        if not H or not W or H % self.spatial_factor or W % self.spatial_factor:
            raise ValueError(f"video: needs H and W in multiples of {self.spatial_factor}, got {H}x{W}")

    def to_patches(self, video: Tensor) -> Tensor:
        p = self.config.patch_size or 1
        x: Tensor = video.unflatten(4, (-1, p)).unflatten(3, (-1, p))  # [B, C, F, H/p, ph, W/p, pw]
        return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)

    def to_video(self, x: Tensor) -> Tensor:
        p = self.config.patch_size or 1
        x = x.unflatten(1, (-1, p, p))  # [B, C, pw, ph, F, H/p, W/p]
        return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
