"""Cases of the ops on video: patches, the autoencoder's layers, the sampler and its noise.

Shapes of Wan at 832x480 and of its autoencoder (full), of the embedded model (quick). The baselines are what a user of
torch or diffusers runs today, written as plainly as there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pysora import ops
from pysora.bench.case import Case, Draw, has_diffusers, item

WIDTH = {"full": 1536, "quick": 256, "tiny": 32}
LATENTS = {"full": (16, 21, 60, 104), "quick": (24, 5, 16, 16), "tiny": (4, 3, 6, 10)}


def patch_embed(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """2*L*C*pt*ph*pw*D operations. Torch's usual form, and its fastest: unfold and a linear layer."""
    (C, T, H, W), D = LATENTS[size], WIDTH[size]

    def convolved(video: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv3d(video, weight, bias, stride=(1, 2, 2)).flatten(2).transpose(1, 2)

    def unfolded(video: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        patches = video.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6)
        return F.linear(patches.flatten(4).flatten(1, 3), weight.flatten(1), bias)

    return [
        Case(
            "patch_embed",
            f"{C}x{T}x{H}x{W} to {D}, patch 1x2x2",
            dtype,
            draw=lambda draw: (draw(1, C, T, H, W), draw(D, C, 1, 2, 2), draw(D)),
            ours=ops.patch_embed,
            rivals={"torch": convolved, "torch unfold": unfolded},
            unit="GFLOP/s",
            amount=2 * T * (H // 2) * (W // 2) * 4 * C * D,
            intensity=2 * C * D / (C + D / 4) / item(dtype),
            exact=lambda video, weight, bias: convolved(video[:, :, :1], weight, bias),
            part=lambda result: result[:, : H // 2 * (W // 2)],
        )
    ]


def unpatchify(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """Every value is read and written once."""
    C, T, H, W = LATENTS[size]
    grid, patch = (T, H // 2, W // 2), (1, 2, 2)

    def plain(tokens: Tensor, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
        x = tokens.reshape(1, *grid, *patch, C).permute(0, 7, 1, 4, 2, 5, 3, 6)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    return [
        Case(
            "unpatchify",
            f"{math.prod(grid)} tokens of {4 * C}",
            dtype,
            draw=lambda draw: (draw(1, math.prod(grid), 4 * C), grid, patch),
            ours=ops.unpatchify,
            rivals={"torch": plain},
            unit="GB/s",
            amount=2 * C * T * H * W * item(dtype),
            exact=ops.unpatchify.reference,
            rotates=size == "full",
        )
    ]


def _norm_silu(x: Tensor, gamma: Tensor) -> Tensor:
    gamma = gamma.view(-1, *(1,) * (x.ndim - 2))
    return F.silu(F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma)


def norm_silu(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """x is read and written once, with its values in planes or a pixel's channels side by side."""
    shapes = {"full": [(96, 4, 128, 128), (384, 1, 32, 32)], "quick": [(32, 4, 64, 64)], "tiny": [(8, 2, 5, 6)]}[size]
    layouts = {"planes": torch.contiguous_format, "channels last": torch.channels_last_3d}

    def case(layout: str, C: int, T: int, H: int, W: int) -> Case:
        return Case(
            "norm_silu",
            f"{C}x{T}x{H}x{W}, {layout}",
            dtype,
            draw=lambda draw: (draw(1, C, T, H, W).contiguous(memory_format=layouts[layout]), draw(C)),
            ours=ops.norm_silu,
            rivals={"torch": _norm_silu},
            unit="GB/s",
            amount=2 * C * T * H * W * item(dtype),
            intensity=4 / item(dtype),
            exact=ops.norm_silu.reference,
            rotates=size == "full",
        )

    return [case(layout, *shape) for shape in shapes for layout in layouts]


def causal_conv3d(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """54*C*C*T*H*W operations for a 3x3x3 kernel: norm, SiLU, the cached frames, then the convolution."""
    shapes = {
        "full": [(96, 4, 128, 128), (384, 1, 32, 32)],
        "quick": [(32, 4, 32, 32)],
        "tiny": [(8, 2, 5, 6)],
    }[size]

    def plain(x: Tensor, weight: Tensor, bias: Tensor, cache: Tensor, gamma: Tensor) -> Tensor:
        x = torch.cat([_norm_silu(cache, gamma), _norm_silu(x, gamma)], 2)
        return F.conv3d(F.pad(x, (1, 1, 1, 1, 0, 0)), weight, bias)

    def case(C: int, T: int, H: int, W: int) -> Case:
        return Case(
            "causal_conv3d",
            f"{C} to {C}, {T}x{H}x{W}, norm and SiLU",
            dtype,
            draw=lambda draw: (
                draw(1, C, T, H, W),
                draw(C, C, 3, 3, 3) / (27 * C) ** 0.5,
                draw(C),
                draw(1, C, 2, H, W),
                draw(C),
            ),
            ours=ops.causal_conv3d,
            rivals={"torch": plain},
            unit="GFLOP/s",
            amount=54 * C * C * T * H * W,
            intensity=54 * C * C * T * H * W / (2 * C * T * H * W + 27 * C * C) / item(dtype),
            exact=lambda x, *rest: plain(x[:, :, :1], *rest),
            part=lambda result: (result if isinstance(result, Tensor) else result[0])[:, :, :1],
        )

    return [case(*shape) for shape in shapes]


class DiffusersStep:
    """Guidance and a step of diffusers' UniPC in the middle of a schedule, where its history is full."""

    MIDDLE = 10

    def __init__(self) -> None:
        self.scheduler: Any = None

    def __call__(
        self, sample: Tensor, cond: Tensor, uncond: Tensor, history: list[Tensor], coefficients: Tensor, guidance: float
    ) -> Tensor:
        if self.scheduler is None:
            from diffusers import UniPCMultistepScheduler

            settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
            self.scheduler = UniPCMultistepScheduler(solver_order=2, **settings)
            self.scheduler.set_timesteps(2 * self.MIDDLE)
        scheduler, now = self.scheduler, self.scheduler.timesteps[self.MIDDLE]
        scheduler.model_outputs, scheduler.last_sample = [history[0], history[1]], history[2]
        scheduler.timestep_list = list(scheduler.timesteps[self.MIDDLE - 2 : self.MIDDLE])
        scheduler.lower_order_nums = scheduler.this_order = 2
        scheduler._step_index = self.MIDDLE
        stepped: Tensor = scheduler.step(uncond + guidance * (cond - uncond), now, sample, return_dict=False)[0]
        return stepped


def sampler_step(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """A UniPC step with guidance: six inputs are read and three results written; the state is fp32."""
    shape = LATENTS[size]
    values = math.prod(shape)

    def plain(
        sample: Tensor, cond: Tensor, uncond: Tensor, history: list[Tensor], coefficients: Tensor, guidance: float
    ) -> list[Tensor]:
        terms = [sample, uncond + guidance * (cond - uncond), *history]
        return [sum((c * t for c, t in zip(row, terms, strict=True)), torch.zeros(())) for row in coefficients.tolist()]

    def draw_all(draw: Draw) -> tuple[Any, ...]:
        state = [draw(*shape, fp32=True) for _ in range(4)]
        return state[0], draw(*shape), draw(*shape), state[1:], draw(3, 5, fp32=True, host=True), 5.0

    rivals: dict[str, Callable[..., Any]] = {"torch": plain}
    if has_diffusers():
        rivals["diffusers"] = DiffusersStep()
    return [
        Case(
            "sampler_step",
            "x".join(map(str, shape)) + ", UniPC",
            dtype,
            draw=draw_all,
            ours=ops.sampler_step,
            rivals=rivals,
            unit="GB/s",
            amount=values * (4 * (1 + 3 + 3) + 2 * item(dtype)),
            intensity=33 / (4 * (1 + 3 + 3) + 2 * item(dtype)),
            exact=ops.sampler_step.reference,
            unlike=("diffusers",),
            rotates=size == "full",
        )
    ]


def noise(dtype: str, size: str, tokens: Sequence[int]) -> list[Case]:
    """4 bytes a value are written. Torch's generator gives other values, which depend on their order."""
    shape = LATENTS[size]
    made = Case(
        "noise",
        "x".join(map(str, shape)),
        "fp32",
        draw=lambda draw: (shape, 1, 0, (0, 0, 0), draw.device),
        ours=ops.noise,
        rivals={"torch": lambda shape, seed, sample, origin, device: torch.randn(shape, device=device)},
        unit="GB/s",
        amount=4 * math.prod(shape),
        exact=ops.noise.reference,
        against="the reference",
        unlike=("torch",),
        compiles=False,
    )
    return [made] if dtype == "fp32" else []


CASES = {
    function.__name__: function for function in (patch_embed, unpatchify, norm_silu, causal_conv3d, sampler_step, noise)
}
