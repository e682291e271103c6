"""Layers of the causal video autoencoder, and the walk over time that they share.

The walk is written once: every layer takes a chunk of frames and a `Stream`, which carries the frames that the layer's
causal kernel still needs. A whole clip in one chunk (training) and one latent frame at a time (low memory) are the same
code and give the same numbers. Source of the architecture: Wan (arXiv:2503.20314, section 4.1).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pysora import ops
from pysora.ops._onednn import convolution, pictures


class Stream:
    """What a causal walk over frames carries from one chunk to the next, per layer."""

    def __init__(self) -> None:
        self.first = True
        self._tail: dict[nn.Module, Tensor] = {}

    def run(self, layers: Iterable[Layer], x: Tensor) -> Tensor:
        """Take the next chunk through `layers`, one after the other."""
        for layer in layers:
            x = layer(x, self)
        self.first = False
        return x

    def swap(self, layer: nn.Module, tail: Tensor) -> Tensor | None:
        """Keep `tail` for the layer's next chunk and return what its previous chunk left, None at the first."""
        previous = self._tail.get(layer)
        self._tail[layer] = tail
        return previous

    def tail(self, layer: nn.Module) -> Tensor | None:
        """What the layer's previous chunk left."""
        return self._tail.get(layer)


Layer = Callable[[Tensor, Stream], Tensor]


class CausalConv3d(nn.Conv3d):
    """Convolution over (T, H, W) that sees no later frame; odd kernels, stride 1, output as large as the input."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int | tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel)

    # A Conv3d for its weights alone: the call needs the stream too.
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


@dataclass(frozen=True)
class NormedConv:
    """A causal convolution with norm and SiLU before it: a layer made of two modules that lie elsewhere."""

    norm: RMSNorm
    conv: CausalConv3d

    def __call__(self, x: Tensor, stream: Stream) -> Tensor:
        y: Tensor = self.conv(x, stream, norm=self.norm.gain)
        return y


@dataclass(frozen=True)
class Patchify:
    """Squares of `size` pixels become channels: `[B, C, F, H, W]` -> `[B, C*size*size, F, H/size, W/size]`."""

    size: int

    def __call__(self, x: Tensor, stream: Stream) -> Tensor:
        x = x.unflatten(4, (-1, self.size)).unflatten(3, (-1, self.size))  # [B, C, F, H/p, ph, W/p, pw]
        return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


@dataclass(frozen=True)
class Unpatchify:
    """The inverse of `Patchify`."""

    size: int

    def __call__(self, x: Tensor, stream: Stream) -> Tensor:
        x = x.unflatten(1, (-1, self.size, self.size))  # [B, C, pw, ph, F, H/p, W/p]
        return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


@dataclass(frozen=True)
class ChannelsLast:
    """Puts the channels of each pixel side by side on a CPU: convolutions are faster so, and the layers keep it.

    Where x or `weight`, the next layer's, needs a gradient, x stays as it is: the backward pass is slower so.
    """

    weight: Tensor

    def __call__(self, x: Tensor, stream: Stream) -> Tensor:
        trains = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        return x if trains or x.device.type != "cpu" else x.contiguous(memory_format=torch.channels_last_3d)


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
        y: Tensor = self.conv2(h, stream, norm=self.norm2.gain, residual=shortcut)
        return y


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
        y: Tensor = self.resnets[1](self.attentions[0](x), stream)
        return y


class Downsample(nn.Module):
    """Halve H and W; with `temporal` also T, where the first frame of all passes alone (1 + 2n frames -> 1 + n)."""

    def __init__(self, channels: int, temporal: bool) -> None:
        super().__init__()
        # Index 1: the checkpoint's index 0 is the padding, which has no weights.
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: Tensor, stream: Stream) -> Tensor:
        conv = cast(nn.Conv2d, self.resample[1])
        padded = F.pad(pictures(x), (0, 1, 0, 1))
        halved = convolution(padded, conv.weight, conv.bias, (2, 2), (0, 0)).to(x.dtype)
        x = halved.unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        if self.time_conv is None:
            return x
        # A copy: a view would keep the whole chunk.
        last = stream.swap(self, x[:, :, -1:].clone())
        if last is not None:
            return self._halved_in_time(_joined(last, x), self.time_conv)
        return _joined(x[:, :, :1], self._halved_in_time(x, self.time_conv)) if x.shape[2] > 1 else x

    @staticmethod
    def _halved_in_time(x: Tensor, conv: nn.Conv3d) -> Tensor:
        return convolution(x, conv.weight, conv.bias, (2, 1, 1), (0, 0, 0)).to(x.dtype)


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
                x = _interleave(head, self.time_conv(rest, stream))
        conv = cast(nn.Conv2d, self.resample[1])
        return ops.causal_conv3d(x, conv.weight.unsqueeze(2), conv.bias, upsample=True)[0]


def laid_like(x: Tensor, *shape: int) -> Tensor:
    """Memory for `[B, C, T, H, W]` in which channels lie side by side where those of `x` do."""
    side_by_side = x.shape[1] > 1 and x.stride(1) == 1
    memory_format = torch.channels_last_3d if side_by_side else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _joined(before: Tensor, x: Tensor) -> Tensor:
    """Frames after others; `torch.cat` forgets how they lie where one is a single frame."""
    B, C, T, H, W = x.shape
    out = laid_like(x, B, C, before.shape[2] + T, H, W)
    out[:, :, : before.shape[2]].copy_(before)
    out[:, :, before.shape[2] :].copy_(x)
    return out


def _interleave(head: Tensor, x: Tensor) -> Tensor:
    """`head` `[B, C, t, H, W]`, then the two halves of x's channels as frames in turn: `[B, C, t+2T, H, W]`."""
    B, C, T, H, W = x.shape
    first = head.shape[2]
    out = laid_like(x, B, C // 2, first + 2 * T, H, W)
    out[:, :, :first].copy_(head)
    out[:, :, first:].unflatten(2, (T, 2)).copy_(x.unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5))
    return out


def average_down(x: Tensor, out_channels: int, time: int, space: int) -> Tensor:
    """Shortcut of the residual form: space-to-depth by (time, space, space), then means over groups of channels.

    `[B, C, T, H, W]` -> `[B, out_channels, ceil(T/time), H/space, W/space]`; T is filled up with zeros in front.
    """
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    B, C, T, H, W = x.shape
    x = x.reshape(B, C, T // time, time, H // space, space, W // space, space).permute(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(B, out_channels, -1, T // time, H // space, W // space).mean(2)


def repeat_up(x: Tensor, out_channels: int, time: int, space: int, first: bool) -> Tensor:
    """Shortcut of the residual form: repeat channels, then depth-to-space by (time, space, space).

    `[B, C, T, H, W]` -> `[B, out_channels, T*time, H*space, W*space]`, less the first time-1 frames at the start.
    """
    B, C, T, H, W = x.shape
    # How many of a result's places in time, rows and columns have a channel of their own.
    own, places = C // out_channels, (time, space, space)
    split = []
    for n in places:
        split.append(min(n, max(own, 1)))
        own //= split[-1]
    repeated = max(1, out_channels // C)
    spread = x.reshape(B, out_channels // repeated, 1, *split, T, H, W)
    spread = spread.expand(-1, -1, repeated, *places, -1, -1, -1)
    out = laid_like(x, B, out_channels, T * time, H * space, W * space)
    parts = out.unflatten(4, (W, space)).unflatten(3, (H, space)).unflatten(2, (T, time)).unflatten(1, (-1, repeated))
    parts.copy_(spread.permute(0, 1, 2, 6, 3, 7, 4, 8, 5))
    return out[:, :, time - 1 :] if first else out


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
        for layer in self.layers():
            x = layer(x, stream)
        return x + repeat_up(start, self.out_channels, self.time, 2, stream.first) if self.shortcut else x

    def layers(self) -> list[Layer]:
        """What runs one after the other, beside the shortcut."""
        return [*self.resnets, *([self.upsampler] if self.upsampler is not None else self.upsamplers or [])]
