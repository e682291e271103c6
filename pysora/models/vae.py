"""The causal video autoencoder of the Wan family (2.1 and 2.2 forms).

Source of the architecture: Wan (arXiv:2503.20314, section 4.1; Apache-2.0) and the checkpoint layout of diffusers'
`AutoencoderKLWan`, whose parameter names are kept so that public weights load without renaming.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from pysora.memory import parse_memory, returned_at_once
from pysora.models.vae_blocks import (
    CausalConv3d,
    ChannelsLast,
    Downsample,
    Layer,
    MidBlock,
    NormedConv,
    Patchify,
    ResidualBlock,
    ResidualDownBlock,
    RMSNorm,
    Stream,
    Unpatchify,
    UpBlock,
)
from pysora.models.vae_plan import Job, TilePlan
from pysora.models.vae_tiles import Piece, complete, frugally, through, through_tiles


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

    def layers(self) -> list[Layer]:
        """What runs one after the other; only the middle block needs the whole frame."""
        return [self.conv_in, *self.down_blocks, self.mid_block, NormedConv(self.norm_out, self.conv_out)]

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        return stream.run(self.layers(), x)


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

    def layers(self) -> list[Layer]:
        """What runs one after the other; only the middle block needs the whole frame."""
        return [self.conv_in, self.mid_block, *self.up_blocks, NormedConv(self.norm_out, self.conv_out)]

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        return stream.run(self.layers(), x)


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

    def moments(
        self, video: Tensor, chunk: int | None = None, memory: str | float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the latents.

        video: `[B, 3, F, H, W]` in [-1, 1], F = 1 + temporal_factor*n; H, W multiples of spatial_factor.
        chunk: latent frames that are computed at a time; None takes the whole clip at once.
        memory: most bytes to take, or text such as "2GiB", beside the video; the frames are tiled so that it
            suffices, and no gradient is recorded. None: no tiles.
        returns: two `[B, z, T, H/s, W/s]`.
        Raises ValueError that says what is needed where `memory` does not suffice.
        """
        self._check_video(video)
        job = self.encoding(video.shape, chunk, video.element_size())
        if memory is None:
            return self._moments(video, chunk, job.whole())
        with torch.no_grad(), returned_at_once():
            return self._moments(video, chunk, job.within(parse_memory(memory)))

    def _moments(self, video: Tensor, chunk: int | None, plan: TilePlan) -> tuple[Tensor, Tensor]:
        layers = self._encoding_layers()
        pieces = through_tiles(layers[: plan.cut], self._chunks(video, chunk), plan.tiles, plan.tiles_outside)
        out = list(through(layers[plan.cut :], complete(pieces, plan.rows, plan.cols)))
        mean, log_variance = self.quant_conv(torch.cat(out, 2), Stream()).chunk(2, dim=1)
        return mean, log_variance

    def _chunks(self, video: Tensor, chunk: int | None) -> Iterator[Tensor]:
        """The frames of `chunk` latent frames at a time."""
        T, start = (video.shape[2] - 1) // self.temporal_factor + 1, 0
        for latent in range(0, T, chunk or T):
            stop = 1 + (min(latent + (chunk or T), T) - 1) * self.temporal_factor
            yield video[:, :, start:stop]
            start = stop

    def encode(self, video: Tensor, chunk: int | None = 1, memory: str | float | None = None) -> Tensor:
        """The mode of the latents, not normalised: see `moments` for the arguments."""
        return self.moments(video, chunk, memory)[0]

    def decode_pieces(self, latents: Tensor, plan: TilePlan, chunk: int = 1) -> Iterator[Piece]:
        """Parts of the frames, clamped to [-1, 1], in the order of a plan for these latents and this chunk."""
        layers = self._decoding_layers()
        x = self.post_quant_conv(latents, Stream())
        chunks = through(layers[: plan.cut], x.split(chunk, 2))
        for piece in through_tiles(layers[plan.cut :], chunks, plan.tiles, plan.tiles_outside):
            yield piece._replace(values=piece.values.clamp(-1, 1))

    def decode_frames(self, latents: Tensor, chunk: int = 1, memory: str | float | None = None) -> Iterator[Tensor]:
        """Yield the frames of `chunk` latent frames at a time, `[B, 3, f, H*s, W*s]`, clamped to [-1, 1].

        latents: `[B, z, T, H, W]`, not normalised.
        memory: most bytes to take, or text such as "2GiB", the frames included that wait to be yielded; they are
            tiled so that it suffices, and no gradient is recorded. None: no tiles.
        Raises ValueError, before anything runs, that says what is needed where `memory` does not suffice.
        """
        job = self.decoding(latents.shape, chunk, latents.element_size())
        if memory is None:
            plan = job.whole()
            return complete(self.decode_pieces(latents, plan, chunk), plan.rows, plan.cols)
        frame = self._video_bytes(latents, 1)
        # The caller still has the last frames while the next are made.
        kept = 2 * chunk * self.temporal_factor * frame
        plan = job.within(parse_memory(memory), kept, self._video_bytes(latents))
        return complete(frugally(self.decode_pieces(latents, plan, chunk)), plan.rows, plan.cols)

    def decode(self, latents: Tensor, chunk: int = 1, memory: str | float | None = None) -> Tensor:
        """All frames of `decode_frames`, `[B, 3, F, H*s, W*s]`; `memory` includes them."""
        if memory is None:
            return torch.cat(list(self.decode_frames(latents, chunk)), 2)
        job = self.decoding(latents.shape, chunk, latents.element_size())
        video = self._video_bytes(latents)
        plan = job.within(parse_memory(memory), video, video)
        out = latents.new_empty(latents.shape[0], 3, self.frames(latents.shape[2]), plan.rows, plan.cols)
        for start, rows, cols, values, _ in frugally(self.decode_pieces(latents, plan, chunk)):
            out[:, :, start : start + values.shape[2], rows, cols] = values
        return out

    def frames(self, T: int) -> int:
        """Frames that T latent frames stand for."""
        return 1 + (T - 1) * self.temporal_factor

    def encoding(self, shape: Sequence[int], chunk: int | None, itemsize: int) -> Job:
        """The plans of encoding videos of `shape` `[B, 3, F, H, W]`, `chunk` latent frames at a time."""
        B, C, F_, H, W = shape
        T = (F_ - 1) // self.temporal_factor + 1
        chunk = min(chunk or T, T)
        frames = self.frames(chunk), chunk * self.temporal_factor, -(-T // chunk) - 1
        what = f"encoding {F_} frame{'s' * (F_ > 1)} of {W}x{H}"
        return Job(self._encoding_layers(), True, (B, C, H, W), frames, itemsize, what)

    def decoding(self, shape: Sequence[int], chunk: int, itemsize: int) -> Job:
        """The plans of decoding latents of `shape` `[B, z, T, H, W]`, `chunk` latent frames at a time."""
        if len(shape) != 5 or shape[1] != self.config.z_dim or not shape[2]:
            raise ValueError(f"latents: needs shape [B, {self.config.z_dim}, T, H, W], got {list(shape)}")
        B, C, T, H, W = shape
        chunk = min(chunk, T)
        what = f"decoding {self.frames(T)} frame{'s' * (T > 1)} of {W * self.spatial_factor}x{H * self.spatial_factor}"
        return Job(self._decoding_layers(), False, (B, C, H, W), (chunk, chunk, -(-T // chunk) - 1), itemsize, what)

    def _encoding_layers(self) -> list[Layer]:
        start = ChannelsLast(self.encoder.conv_in.weight)
        return [Patchify(self.config.patch_size or 1), start, *self.encoder.layers()]

    def _decoding_layers(self) -> list[Layer]:
        start = ChannelsLast(self.decoder.conv_in.weight)
        return [start, *self.decoder.layers(), Unpatchify(self.config.patch_size or 1)]

    def _video_bytes(self, latents: Tensor, frames: int | None = None) -> int:
        """Bytes of the decoded video, or of some of its frames."""
        B, _, T, H, W = latents.shape
        pixels = H * W * self.spatial_factor**2
        return B * 3 * (frames or self.frames(T)) * pixels * latents.element_size()

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

    def to_video(self, x: Tensor) -> Tensor:
        """What the decoder gives, as a video."""
        return Unpatchify(self.config.patch_size or 1)(x, Stream())
