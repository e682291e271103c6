"""What layers of the autoencoder take for one chunk of frames: bytes that are alive at once, caches, arithmetic.

Each rule follows the `forward` of its layer and, of its ops, the backend that runs on this CPU; a test holds them
against the process's resident memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from pysora import ops
from pysora.models.vae_blocks import (
    CausalConv3d,
    ChannelsLast,
    Downsample,
    FrameAttention,
    MidBlock,
    NormedConv,
    Patchify,
    ResidualBlock,
    ResidualDownBlock,
    Unpatchify,
    UpBlock,
    Upsample,
)
from pysora.ops._cpu import multiplies_bf16

FP32 = 4
# torch hands fp32 convolutions of one sample to oneDNN from this product of channels, frames and rows on, and
# multiplies smaller ones by a matrix of all their taps (aten/src/ATen/native/Convolution.cpp, use_mkldnn).
DIRECT = 20480


@dataclass
class Tally:
    """Follows the shape `[batch, channels, frames, rows, cols]` of one chunk through layers.

    itemsize: bytes of a number. first: whether the chunk begins the clip.
    live: most bytes alive at once, without the tensor that the first layer is given and without `cached`.
    cached: bytes that the layers keep for the next chunk. flops: arithmetic of the convolutions.
    """

    batch: int
    channels: int
    frames: int
    rows: int
    cols: int
    itemsize: int
    first: bool
    live: int = field(default=0, init=False)
    cached: int = field(default=0, init=False)
    flops: int = field(default=0, init=False)
    _held: int = field(default=0, init=False)

    def fresh(self, rows: int | None = None, cols: int | None = None) -> Tally:
        """A new one that starts with this one's shape, or with other rows and columns."""
        rows, cols = rows or self.rows, cols or self.cols
        return Tally(self.batch, self.channels, self.frames, rows, cols, self.itemsize, self.first)

    def size(self, frames: int | None = None, channels: int | None = None) -> int:
        """Bytes of the current tensor, or of one with other frames or channels."""
        frames = self.frames if frames is None else frames
        channels = self.channels if channels is None else channels
        return self.batch * channels * frames * self.rows * self.cols * self.itemsize

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """These bytes are alive all through the block."""
        self._held += count
        yield
        self._held -= count

    def alive(self, count: int) -> None:
        """These bytes are alive for a moment."""
        self.live = max(self.live, self._held + count)

    def run(self, layers: Sequence[object]) -> Tally:
        """Layers one after the other; whoever calls them holds each one's input until it is done."""
        for i, layer in enumerate(layers):
            with self.holding(self.size() if i else 0):
                tally(layer, self)
        return self

    def strided(self, weight: Tensor, frames: int, stride: tuple[int, int]) -> None:
        """A convolution of `frames` frames with a stride along time and space; the shape becomes its result's."""
        if self.itemsize > FP32:
            self._convolve(weight, frames, stride=stride)
            return
        made, channels, *kernel = weight.shape
        read = self.size(frames)
        self.channels, self.frames = made, (frames - kernel[0]) // stride[0] + 1
        self.rows, self.cols = self.rows // stride[1], self.cols // stride[1]
        self.flops += 2 * self.size() // self.itemsize * channels * math.prod(kernel)
        self._direct(weight.numel(), read, self.size())

    def _direct(self, weights: int, read: int, made: int) -> None:
        """oneDNN's convolution where channels lie side by side: its copy of `weights` numbers, and the bytes it makes.

        bf16 that the processor does not multiply is there as fp32 too: the weights, what is read, what is made.
        """
        wide = self.itemsize < FP32 and not multiplies_bf16()
        factor = FP32 // self.itemsize if wide else 1
        self.alive((weights * (1 + wide) * self.itemsize + made) * factor + wide * (read * factor + made))

    def _convolve(self, weight: Tensor, frames: int, up: int = 1, stride: tuple[int, int] = (1, 1)) -> None:
        """torch's convolution of `frames` frames, `up` times as high and wide; the shape becomes its result's.

        weight: `[C', C, kt, kh, kw]`. stride: along time and space.
        """
        made, channels, *kernel = weight.shape
        given = self.batch * frames * self.rows * self.cols * up * up
        rows = self.rows
        self.frames = (frames - kernel[0]) // stride[0] + 1
        self.channels, self.rows, self.cols = made, self.rows * up // stride[1], self.cols * up // stride[1]
        after = self.batch * self.frames * self.rows * self.cols
        taps = math.prod(kernel)
        self.flops += 2 * after * made * channels * taps
        if self.itemsize == FP32 and self.batch == 1 and channels * frames * rows * up <= DIRECT:
            scratch = after * (channels * taps + made)
        else:
            # Copies in blocks of 16 channels: of the input and the result, then of the result alone.
            scratch = max(_blocks(channels) * given, made * after) + _blocks(made) * after
        self.alive((scratch + weight.numel()) * self.itemsize)

    def causal(self, conv: CausalConv3d, *, norm: bool = False, residual: bool = False) -> None:
        """`ops.causal_conv3d` with its cache."""
        self._causal(conv.weight, norm, residual, 1)

    def doubled(self, conv: nn.Conv2d) -> None:
        """`ops.causal_conv3d` on frames of twice the height and width."""
        self._causal(conv.weight.unsqueeze(2), False, False, 2)

    def _causal(self, weight: Tensor, norm: bool, residual: bool, up: int) -> None:
        if self.itemsize <= FP32 and ops.causal_conv3d.explain(None).backend == "cpu":
            self._side_by_side(weight, norm, up)
        else:
            self._plain(weight, norm, residual, up)

    def _side_by_side(self, weight: Tensor, norm: bool, up: int) -> None:
        """The op's CPU backend: what the convolution reads, laid out once, and its result; no copies in blocks."""
        made, channels, *kernel = weight.shape
        past = kernel[0] - 1
        before = min(past, self.frames - 1) if self.first else past
        read = self.size(self.frames + before)
        self.cached += self.size(past)
        # The next chunk's cache is made while the last one's is still there.
        with self.holding(self.size(past) + (read if norm or before else 0)):
            cells = self.batch * self.frames * made
            # Doubled, there are the results of each parity before they are in their places, and kernels of sums.
            parts = cells * up * up * (self.rows + 1) * (self.cols + 1) * self.itemsize if up > 1 else 0
            weights = weight.numel() * (5 if up > 1 else 1)
            taps = math.prod(kernel[1:]) * (4 / 9 if up > 1 else 1) * (before + 1 if self.first else kernel[0])
            self.rows, self.cols, self.channels = self.rows * up, self.cols * up, made
            self.flops += round(2 * cells * self.rows * self.cols * channels * taps)
            self._direct(weights, read, parts + self.size())

    def _plain(self, weight: Tensor, norm: bool, residual: bool, up: int) -> None:
        """The op's reference."""
        past = weight.shape[2] - 1
        frames = self.frames + past
        # The next chunk's cache is made while the last one's is still there.
        self.cached += self.size(past)
        with self.holding(self.size(past)):
            joined = self.size(frames) if past else 0
            if norm:
                # In fp32 or wider: the length of each position and two copies, of a narrower type one more.
                wide = max(self.itemsize, FP32)
                copies = self.size(frames) * (2 + (self.itemsize < FP32)) + self.size(frames, 1)
                self.alive(joined + copies // self.itemsize * wide)
                joined = self.size(frames)
            if up > 1:
                self.alive(joined + self.size(frames) * up * up)
                joined = self.size(frames) * up * up
            with self.holding(joined):
                self._convolve(weight, frames, up)
                self.alive(self.size() * (1 + residual))


def _blocks(channels: int) -> int:
    return -(-channels // 16) * 16


@functools.singledispatch
def tally(layer: object, t: Tally) -> None:
    """Add a layer's needs to `t` and move its shape on. The layer's input is held outside."""
    raise TypeError(f"{type(layer).__name__} has no costs")


@tally.register
def _(layer: CausalConv3d, t: Tally) -> None:
    t.causal(layer)


@tally.register
def _(layer: NormedConv, t: Tally) -> None:
    t.causal(layer.conv, norm=True)


@tally.register
def _(layer: ChannelsLast, t: Tally) -> None:
    t.alive(t.size())


@tally.register
def _(layer: Patchify, t: Tally) -> None:
    t.channels, t.rows, t.cols = t.channels * layer.size**2, t.rows // layer.size, t.cols // layer.size
    t.alive(t.size())


@tally.register
def _(layer: Unpatchify, t: Tally) -> None:
    t.channels, t.rows, t.cols = t.channels // layer.size**2, t.rows * layer.size, t.cols * layer.size
    t.alive(t.size() * 2)


@tally.register
def _(layer: ResidualBlock, t: Tally) -> None:
    channels, shortcut = t.channels, 0
    if isinstance(layer.conv_shortcut, CausalConv3d):
        t.causal(layer.conv_shortcut)
        shortcut, t.channels = t.size(), channels
    with t.holding(shortcut):
        t.causal(layer.conv1, norm=True)
        with t.holding(t.size()):
            t.causal(layer.conv2, norm=True, residual=True)


@tally.register
def _(layer: FrameAttention, t: Tally) -> None:
    # Normed, as tokens, q k v, attended, projected, their sum; keys and values once more inside the attention.
    t.alive(8 * t.size() + 2 * t.size() // t.itemsize * FP32)
    pixels = t.rows * t.cols
    t.flops += t.batch * t.frames * pixels * t.channels * (8 * t.channels + 4 * pixels)


@tally.register
def _(layer: MidBlock, t: Tally) -> None:
    tally(layer.resnets[0], t)
    with t.holding(t.size()):
        tally(layer.attentions[0], t)
        with t.holding(t.size()):
            tally(layer.resnets[1], t)


@tally.register
def _(layer: Downsample, t: Tally) -> None:
    conv = cast(nn.Conv2d, layer.resample[1])
    # The padded frames.
    with t.holding(t.size()):
        t.strided(conv.weight.unsqueeze(2), t.frames, (1, 2))
    if layer.time_conv is None:
        return
    t.cached += t.size(1)
    frames = t.frames if t.first else t.frames + 1
    # The last chunk's last frame beside this one's, and both chunks joined.
    with t.holding(t.size() + t.size(1) + t.size(frames)):
        if frames >= layer.time_conv.kernel_size[0]:
            t.strided(layer.time_conv.weight, frames, (2, 1))
            t.frames += t.first
            t.alive(t.size() * (1 + t.first))


@tally.register
def _(layer: Upsample, t: Tally) -> None:
    rest = t.frames - t.first
    if layer.time_conv is not None and rest:
        channels, t.frames = t.channels, rest
        t.causal(layer.time_conv)
        # Both halves of the channels, in turn as frames, and behind the first frame.
        t.alive(3 * t.size())
        t.channels, t.frames = channels, 2 * rest + t.first
        with t.holding(t.size()):
            t.doubled(cast(nn.Conv2d, layer.resample[1]))
    else:
        t.doubled(cast(nn.Conv2d, layer.resample[1]))


@tally.register
def _(layer: ResidualDownBlock, t: Tally) -> None:
    given = t.size()
    # The shortcut: padded in time, then with space and time in its channels.
    t.alive(2 * given)
    frames, rows, cols = -(-t.frames // layer.time), t.rows // layer.space, t.cols // layer.space
    shortcut = t.batch * layer.out_channels * frames * rows * cols * t.itemsize
    with t.holding(shortcut):
        t.run([*layer.resnets, *([] if layer.downsampler is None else [layer.downsampler])])
        t.alive(2 * t.size())


@tally.register
def _(layer: UpBlock, t: Tally) -> None:
    t.run(layer.layers())
    if layer.shortcut:
        # Beside the result: repeated, put in place (with the frames that the first chunk loses), and the sum.
        t.alive(3 * t.size() + 2 * t.size(t.first * (layer.time - 1)))
