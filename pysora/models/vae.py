"""The causal video autoencoder of the Wan family (2.1 and 2.2 forms).

Source of the architecture: Wan (arXiv:2503.20314, section 4.1; Apache-2.0) and the checkpoint layout of diffusers'
`AutoencoderKLWan`, whose parameter names are kept so that public weights load without renaming.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from pysora.models.vae_blocks import (
    CausalConv3d,
    Downsample,
    MidBlock,
    ResidualBlock,
    ResidualDownBlock,
    RMSNorm,
    Stream,
    UpBlock,
)


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
        y: Tensor = self.conv_out(x, stream, norm=self.norm_out.gain)
        return y


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
        y: Tensor = self.conv_out(x, stream, norm=self.norm_out.gain)
        return y


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
