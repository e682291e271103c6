"""The Triton backend in the registry: where it stands, when it is imported, and why it refuses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from triton_targets import refusal, triton_of

from pysora import ops
from pysora.ops import _triton

R = torch.randn
HAVE = {"adaln", "gate_residual", "noise", "norm_silu", "patch_embed", "qk_norm_rope", "sampler_step"} | {
    "spacetime_attention",
    "unpatchify",
}


def test_it_comes_before_the_cpu_and_after_cuda():
    """linear is left to cuBLAS and causal_conv3d to cuDNN, through torch."""
    order = list(ops.BACKENDS)
    for op in ops.OPS.values():
        places = [order.index(i.backend) for i in op.impls]
        assert places == sorted(places)
    assert {name for name, op in ops.OPS.items() if any(i.backend == "triton" for i in op.impls)} == HAVE


def test_the_cpu_needs_no_triton(tmp_path):
    code = (
        "import sys, torch, pysora\nfrom pysora import ops\nfrom pysora.kernels import __doc__\n"
        "x = torch.randn(1, 3, 8)\nops.adaln(x), ops.explain('adaln', x), ops.noise((1, 1, 1, 2), 0)\n"
        "assert 'triton' not in sys.modules\n"
    )
    # Elsewhere than in the sources, which would be found before the installed package.
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_reasons_of_the_machine(monkeypatch):
    look = _triton.unavailable.__wrapped__
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert look() == "triton is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert look() == "this torch is built without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert look() == "there is no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert look() is None


def test_old_cards_and_other_devices_are_refused(monkeypatch):
    capabilities = {0: (7, 5), 1: (8, 0), 2: (12, 0)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    _triton._too_old.cache_clear()
    assert _triton.misplaced("x", torch.device("cuda", 0)) == "cuda:0 has compute capability 7.5, below 8.0"
    assert _triton.misplaced("x", torch.device("cuda", 1)) is None
    assert _triton.misplaced("x", torch.device("cuda", 2)) is None
    _triton._too_old.cache_clear()
    assert triton_of(ops.adaln).unsupported(*ops.adaln.bind((R(1, 2, 3),), {})) == "x is on cpu"
    assert triton_of(ops.noise).unsupported((1, 1, 1, 1), 0, 0, (0, 0, 0), None) == "the result is on cpu"


BF16 = torch.bfloat16
Q = R(1, 4, 2, 16).to(BF16)
FAR = torch.empty(2**24 + 32, dtype=BF16).as_strided((1, 2, 2, 16), (0, 2**24, 16, 1))
INDEX = torch.zeros(4, dtype=torch.int64)
STEP = (R(3), R(3), None, [], R(1, 2))
REFUSED = [
    ("adaln", (R(1, 4, 8).double(),), "x is torch.float64"),
    ("adaln", (R(1, 4, 16)[..., ::2],), "x has a stride of 2 in its last dimension"),
    ("adaln", (R(1, 4, 8), R(1, 2, 8), INDEX), "index is torch.int64"),
    ("adaln", (R(1, 4, 8), R(1, 2, 8, device="meta")), "table is on meta, others on cpu"),
    ("adaln", (R(1, 1, 16385),), "x is 16385 wide, more than 16384"),
    ("gate_residual", (R(1, 4, 8), R(1, 4, 16)[..., ::2], R(1, 8)), "y has a stride of 2 in its last dimension"),
    ("qk_norm_rope", (R(1, 4, 2, 8), R(8), R(4, 4).to(BF16), R(4, 4)), "cos is torch.bfloat16"),
    ("qk_norm_rope", (R(1, 1, 129, 65), R(65)), "x has 129 heads of 65, more than 16384 in powers of two"),
    ("norm_silu", (R(1, 8, 2, 2), R(16)[::2]), "gamma has a stride of 2 in its last dimension"),
    ("norm_silu", (R(1, 16385, 1, 1), R(16385)), "x has 16385 channels, more than 16384"),
    ("norm_silu", (R(1, 2).expand(2**31, 2)[..., None, None], R(2)), "2147483648 pixels are more than 2**31 - 1"),
    ("patch_embed", (R(1, 2, 1, 4, 4), R(3, 2, 1, 2, 4)), "a patch is 4 wide, not 1 or 2"),
    ("patch_embed", (R(1, 2, 1, 4, 4), R(3, 2, 1, 2, 2).to(BF16)), "weight is torch.bfloat16"),
    (
        "patch_embed",
        (R(1, 2, 1, 4, 4), R(3, 2, 1, 2, 2).mT),
        "weight has strides [8, 4, 4, 1, 2]: a patch does not lie side by side",
    ),
    ("unpatchify", (R(1, 4, 8).to(torch.int32), [1, 2, 2], [1, 2, 2]), "tokens is torch.int32"),
    ("spacetime_attention", (Q.float(), Q.float(), Q.float()), "q is torch.float32"),
    ("spacetime_attention", (Q, Q, Q.mT.contiguous().mT), "v has a stride of 2 in its last dimension"),
    ("spacetime_attention", (Q, Q, Q, -1.0), "scale is -1.0, not above 0"),
    ("spacetime_attention", (*[R(1, 1, 1, 96).to(BF16)] * 3,), "heads are 96 wide, not 1 to 64 or 128"),
    ("spacetime_attention", (FAR, FAR, FAR), "the tokens of q are 16777216 values apart, at least 2**24"),
    ("sampler_step", (R(6)[::2], *STEP[1:]), "sample is not contiguous"),
    ("sampler_step", (STEP[0].to(BF16), *STEP[1:]), "sample is torch.bfloat16"),
    (
        "sampler_step",
        (*STEP[:4], R(1, 2, device="meta")),
        "coefficients are on meta: reading them would wait for it",
    ),
    ("sampler_step", (*STEP[:4], R(9, 2)), "coefficients are larger than 8 by 16"),
    ("noise", ((1, 2**11, 2**10, 2**10), 0), "2147483648 places are more than 2**31 - 1"),
]


@pytest.mark.parametrize(("name", "args", "reason"), REFUSED, ids=[f"{n}-{i}" for i, (n, *_) in enumerate(REFUSED)])
def test_refusals(name, args, reason):
    assert refusal(ops.OPS[name], *args) == reason
