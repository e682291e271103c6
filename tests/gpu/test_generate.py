"""From text embeddings to frames on a GPU that is not there: our kernels run on the CPU, all else is what one gets."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pysora.conditioning import TextConditions
from pysora.models.dit import DiT, DiTConfig
from pysora.models.vae import VAE, VAEConfig
from pysora.pipeline import NonFiniteError, Pipeline

STEPS = 4
WAITS = (
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "item",
    "tolist",
    "nonzero",
    "cpu",
    "numpy",
    "equal",
    "allclose",
)


def pipeline() -> Pipeline:
    """A tiny Wan 2.1 whose heads the kernels take, in bf16; it is given embeddings and needs no encoder."""
    torch.manual_seed(0)
    shape = {"num_attention_heads": 1, "attention_head_dim": 64, "text_dim": 32, "freq_dim": 32, "ffn_dim": 96}
    dit = DiT(DiTConfig.from_dict({**shape, "in_channels": 16, "out_channels": 16, "num_layers": 2}))
    vae = VAE(VAEConfig(base_dim=8, dim_mult=(1, 2, 2, 2), num_res_blocks=1))
    for p in (*dit.parameters(), *vae.parameters()):
        nn.init.normal_(p, std=0.3 / max(1, p[0].numel() if p.ndim > 1 else 9) ** 0.5)
    text: Any = TextConditions(encoder=SimpleNamespace(text_length=16, model=nn.Linear(1, 1)))  # type: ignore[arg-type]
    return Pipeline(dit.bfloat16().eval(), vae.bfloat16().eval(), text)


def on(gpu: Any, made: Pipeline) -> Pipeline:
    """The same models on the fake GPU."""
    there = copy.deepcopy(made)
    for module in (there.dit, there.vae):
        for p in (*module.parameters(), *module.buffers()):
            p.data = gpu.put(p.data)
    return there


class Loop:
    """Watches the loop: from the first step's end to the last's beginning, which calls wait for the device."""

    def __init__(self, gpu: Any) -> None:
        self.gpu, self.waits, self.counted = gpu, Counter[str](), list[int]()
        self.inside = False

    def on_step(self, step: int, steps: int, latents: Tensor) -> None:
        self.inside = step < steps - 1
        self.counted.append(self.gpu.count())

    def watch(self, name: str) -> None:
        if self.inside and name in WAITS:
            self.waits[name] += 1


@pytest.fixture
def arguments() -> dict[str, Any]:
    torch.manual_seed(1)
    embeddings = [torch.randn(5, 32).bfloat16(), torch.randn(3, 32).bfloat16()]
    return {"prompt_embeds": embeddings, "seed": 3, "size": "32x16", "frames": 5, "steps": STEPS, "guidance": 3.0}


@pytest.fixture
def loop(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    watched = Loop(gpu)
    before = type(gpu).__torch_function__

    def watching(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(a, Tensor) and self.owns(a) for a in args):
            watched.watch(getattr(func, "__name__", ""))
        return before(self, func, types, args, kwargs)

    monkeypatch.setattr(type(gpu), "__torch_function__", watching)
    yield watched


def test_the_video_is_the_cpus(gpu, loop, arguments):
    """Every kernel of the models is launched; inside the loop none of ours allocates, copies or waits, nor do we."""
    made = pipeline()
    here = made.generate(**arguments)
    there = on(gpu, made)
    with gpu:
        assert there.device == torch.device("cuda", 0)
        video = there.generate(**arguments, on_step=loop.on_step)
    launched = {launch.kernel for launch in gpu.launches}
    names = ("adaln", "gate_residual", "noise", "norm_silu", "patch_embed", "qk_norm_rope", "sampler_step")
    for op in (*names, "spacetime_attention", "unpatchify", "causal_conv3d"):
        assert any(op in kernel for kernel in launched), op
    assert loop.counted == [0] * STEPS and not loop.waits
    difference = np.abs(video.frames.astype(int) - here.frames.astype(int))
    assert difference.mean() < 2 and np.percentile(difference, 99) < 16


def test_nan_is_found_at_its_step_without_waiting_for_it(gpu, arguments):
    made = pipeline()
    made.dit.proj_out.bias.data[3] = torch.nan
    there = on(gpu, made)
    with gpu, pytest.raises(NonFiniteError, match=rf"step 1 of {STEPS}: the latents are not finite"):
        there.generate(**arguments)
