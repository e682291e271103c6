"""Triton kernels against float64 on odd sizes: their source interpreted, their PTX for sm_80 and sm_90 executed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from close import check, part
from torch import Tensor
from triton_targets import Card, Interpreter

from pysora import ops

pytest.importorskip("triton", reason="Triton is not installed")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
R = torch.randn


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    """One process for all tests."""
    process = Interpreter()
    yield process
    process.close()


@pytest.fixture(params=["interpreter", 80, 90], ids=["interpreter", "sm_80", "sm_90"])
def target(request: pytest.FixtureRequest) -> Any:
    """Something that runs an op's Triton backend."""
    return request.getfixturevalue("interpreter") if request.param == "interpreter" else Card(request.param)


@pytest.fixture(params=["interpreter", 80], ids=["interpreter", "sm_80"])
def one_card(request: pytest.FixtureRequest) -> Any:
    """The same without sm_90, for kernels without a product: their code differs in nothing but its scheduling."""
    return request.getfixturevalue("interpreter") if request.param == "interpreter" else Card(request.param)


def int32(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def one_part_of_three(*shape: int, dtype: torch.dtype) -> Tensor:
    """A view like that of one of a fused projection's results; its neighbours are NaN."""
    B, L, *rest = shape
    whole = torch.full((B, L, 3, *rest), math.nan, dtype=dtype)
    whole[:, :, 1] = R(shape)
    return whole[:, :, 1]


ADALN = {
    "a row for each sample": lambda: (R(2, 13, 200).to(BF16), R(2, 2, 200)),
    "index, RMS, gain, bias": lambda: (
        *(R(2, 9, 63).to(F16), R(3, 2, 63).to(BF16), int32(0, 2, 1, 1, 0, 2, 2, 0, 1), R(63), R(63)),
        *(1e-5, "rms"),
    ),
    "views": lambda: (
        *(one_part_of_three(2, 6, 64, dtype=F32), part(R(3, 2, 64), 1), int32([0, 1, 2] * 2, [2] * 6)),
        *(R(64), None, 1e-6, "layer"),
    ),
    "one": lambda: (R(1, 1, 1), R(1, 2, 1)),
    "several tiles of a program": lambda: (R(1, 9, 1000).to(BF16), R(1, 2, 1000)),
    "a large mean": lambda: (R(1, 3, 96) + 1000, None),
}


@pytest.mark.parametrize("case", ADALN.values(), ids=ADALN)
def test_adaln(one_card, case):
    args = case()
    check(one_card(ops.adaln, *args), ops.adaln.reference, args)


GATE_RESIDUAL = {
    "a row for each sample": lambda: (R(2, 13, 200).to(BF16), R(2, 13, 200).to(BF16), R(2, 200)),
    "index and views": lambda: (
        *(one_part_of_three(2, 6, 63, dtype=F16), R(6, 2, 63).transpose(0, 1), part(R(3, 63), 0)),
        int32(0, 2, 1, 1, 0, 2),
    ),
    "one": lambda: (R(1, 1, 1), R(1, 1, 1), R(1, 1)),
    "several parts of a row": lambda: (R(1, 3, 1000), R(1, 3, 1000), R(1, 1000)),
}


@pytest.mark.parametrize("case", GATE_RESIDUAL.values(), ids=GATE_RESIDUAL)
def test_gate_residual(one_card, case):
    args = case()
    check(one_card(ops.gate_residual, *args), ops.gate_residual.reference, args)


def test_rows_that_a_table_lacks_are_not_read(one_card):
    index = int32(0, -1, 3, 2)
    for op, args in (
        (ops.adaln, (R(1, 4, 20), R(3, 2, 20), index)),
        (ops.gate_residual, (R(1, 4, 20), R(1, 4, 20), R(3, 20), index)),
    ):
        result = one_card(op, *args)
        assert result[0, 1:3].isnan().all() and result[0, ::3].isfinite().all()


QK_NORM_ROPE = {
    "all heads together": lambda: (R(2, 11, 3, 20).to(BF16), R(60), R(11, 10), R(11, 10)),
    "each head, no positions": lambda: (R(1, 7, 2, 63).to(F16), R(63).to(BF16)),
    "views": lambda: (one_part_of_three(2, 5, 4, 32, dtype=F32), R(32), part(R(5, 16), 0), part(R(5, 16), 1), 1e-5),
    "part of each head, of some tokens": lambda: (part(R(2, 5, 2, 48), 1)[..., :20], R(40), R(5, 10), R(5, 10)),
    "several tiles of a program": lambda: (R(1, 9, 8, 128).to(BF16), R(1024), R(9, 64), R(9, 64)),
    "one": lambda: (R(1, 1, 1, 2), R(2), R(1, 1), R(1, 1)),
}


@pytest.mark.parametrize("case", QK_NORM_ROPE.values(), ids=QK_NORM_ROPE)
def test_qk_norm_rope(one_card, case):
    args = case()
    check(one_card(ops.qk_norm_rope, *args), ops.qk_norm_rope.reference, args)


NORM_SILU = {
    "channels last": lambda: (R(2, 63, 2, 3, 5).to(BF16).contiguous(memory_format=torch.channels_last_3d), R(63)),
    "pixels side by side": lambda: (R(1, 5, 7, 29), R(5).to(BF16), False),
    "some channels": lambda: (R(1, 48, 2, 3, 5).contiguous(memory_format=torch.channels_last_3d)[:, :24], R(24)),
    "some frames of a video": lambda: (part(R(2, 24, 2, 3, 5).to(F16), 2), R(24)),
    "one": lambda: (R(1, 1, 1, 1), R(1)),
    "zeros": lambda: (torch.zeros(1, 16, 2, 2), R(16)),
}


@pytest.mark.parametrize("case", NORM_SILU.values(), ids=NORM_SILU)
def test_norm_silu(one_card, case):
    args = case()
    check(one_card(ops.norm_silu, *args), ops.norm_silu.reference, args)


def test_norm_silu_hides_no_nan(one_card):
    x = torch.ones(1, 16, 1, 3)
    x[0, 3, 0, 1] = math.nan
    assert one_card(ops.norm_silu, x, torch.ones(16)).isnan()[0, :, 0].all(0).tolist() == [False, True, False]


UNPATCHIFY = {
    "bf16": lambda: (R(2, 24, 2 * 2 * 5).to(BF16), [2, 3, 4], [1, 2, 2]),
    "odd patch, transposed": lambda: (R(42, 15, 1).permute(2, 1, 0), [3, 1, 5], [1, 3, 2]),
    "several frames of a patch, many channels": lambda: (R(1, 2 * 2 * 3, 2 * 1 * 2 * 70), [2, 2, 3], [2, 1, 2]),
    "one": lambda: (R(1, 1, 1).to(F16), [1, 1, 1], [1, 1, 1]),
}


@pytest.mark.parametrize("case", UNPATCHIFY.values(), ids=UNPATCHIFY)
def test_unpatchify(one_card, case):
    args = case()
    assert torch.equal(one_card(ops.unpatchify, *args), ops.unpatchify.reference(*args))


PATCH_EMBED = {
    "bf16": lambda: (R(2, 5, 3, 4, 14).to(BF16), R(63, 5, 1, 2, 2).to(BF16), R(63).to(BF16)),
    "fp16, many channels, transposed": lambda: (
        *(R(10, 4, 2, 40, 1).to(F16).permute(4, 3, 2, 1, 0), R(200, 40, 2, 1, 1).to(F16)),
    ),
    "many lines, two wide": lambda: (R(1, 40, 1, 4, 6).to(BF16), R(16, 40, 1, 2, 2).to(BF16)),
    "fp32": lambda: (R(1, 3, 4, 2, 6), R(9, 3, 2, 1, 2), part(R(9), 0)),
    "one": lambda: (R(1, 1, 1, 1, 1), R(1, 1, 1, 1, 1)),
}


@pytest.mark.parametrize("case", PATCH_EMBED.values(), ids=PATCH_EMBED)
def test_patch_embed(target, case):
    args = case()
    check(target(ops.patch_embed, *args), ops.patch_embed.reference, args)


def qkv(B: int, Lq: int, Lk: int, N: int, K: int, dtype: torch.dtype) -> list[Tensor]:
    return [R(B, L, N, K).to(dtype) for L in (Lq, Lk, Lk)]


def hidden(*shape: int) -> Tensor:
    """A bias that counts keys several times and hides the second half of the first sample's."""
    bias = R(shape)
    bias[0, shape[1] // 2 :] = -math.inf
    return bias


ATTENTION = {
    "head 64": lambda: qkv(1, 200, 130, 2, 64, BF16),
    "head 128, views": lambda: [
        *(one_part_of_three(2, L, 1, 128, dtype=F16) for L in (63, 70)),
        R(2, 70, 1, 128).half(),
    ],
    "odd head, views, scale, bias": lambda: [
        *(one_part_of_three(2, L, 3, 20, dtype=BF16) for L in (13, 71, 71)),
        *(0.4, hidden(2, 71), None, None, True),
    ],
    "scores that fall by hundreds": lambda: [
        *(torch.full((1, 3, 1, 64), 4.0).half(), torch.cat([R(1, 64, 1, 64) + 4, R(1, 70, 1, 64) - 4], 1).half()),
        R(1, 134, 1, 64).half(),
    ],
    "one": lambda: [*qkv(1, 1, 1, 1, 1, F16), None, None, None, None, True],
}


@pytest.mark.parametrize("case", ATTENTION.values(), ids=ATTENTION)
def test_spacetime_attention(target, case):
    args = case()
    result = target(ops.spacetime_attention, *args)
    check(result, ops.spacetime_attention.reference, args)


def test_packed_attention(target):
    """Samples of 1, 0, 70 and 5 queries; the last has no keys."""
    q, k, v = qkv(1, 76, 90, 2, 32, BF16)
    args = [q, k, v, None, None, int32(0, 1, 1, 71, 76), int32(0, 66, 69, 90, 90), True]
    out, lse = target(ops.spacetime_attention, *args)
    check((out, lse), ops.spacetime_attention.reference, args)
    assert (out[:, 71:] == 0).all() and (lse[:, :, 71:] == -math.inf).all()


def test_attention_to_hidden_keys(target):
    """All keys of the first tile hidden, then all of them."""
    q, k, v = qkv(1, 3, 70, 1, 32, BF16)
    bias = torch.zeros(1, 70)
    bias[:, :66] = -math.inf
    args = [q, k, v, None, bias, None, None, True]
    check(target(ops.spacetime_attention, *args), ops.spacetime_attention.reference, args)
    bias[:] = -math.inf
    out, lse = target(ops.spacetime_attention, *args)
    assert (out == 0).all() and (lse == -math.inf).all()
    k[:, 68] = math.nan
    assert target(ops.spacetime_attention, *args[:4]).isnan().all()


SAMPLER_STEP = {
    "guidance, history": lambda: (
        *(R(5, 333), R(5, 333).to(BF16), R(5, 333).to(BF16), [R(5, 333), R(5, 333)], R(3, 4, dtype=torch.float64), 5.5),
    ),
    "noise": lambda: (R(7), R(7), None, [], R(1, 3), 1.0, R(7)),
    "one": lambda: (R(1), R(1).to(F16), R(1).to(F16), [R(1)], R(2, 3), 3.3),
}


@pytest.mark.parametrize("case", SAMPLER_STEP.values(), ids=SAMPLER_STEP)
def test_sampler_step_has_the_bits_of_the_reference(one_card, case):
    args = case()
    for actual, expected in zip(one_card(ops.sampler_step, *args), ops.sampler_step.reference(*args), strict=True):
        assert actual.dtype == F32 and torch.equal(actual, expected)


NOISE = {
    "several channels": ((6, 2, 3, 37), 20, 3, (1, 2, 3)),
    "largest numbers": ((5, 1, 2, 40), 2**32 - 1, 2**31, (2**32 - 1, 2**31, 2**32 - 40)),
    "one": ((1, 1, 1, 1), 0),
}


@pytest.mark.parametrize("args", NOISE.values(), ids=NOISE)
def test_noise_has_the_bits_of_the_reference(one_card, args):
    actual, expected = one_card(ops.noise, *args), ops.noise.reference(*args)
    assert torch.equal(actual.view(torch.int32), expected.view(torch.int32))


def test_nothing_to_do_is_not_launched():
    card = Card(80)
    assert card(ops.adaln, R(0, 3, 8)).shape == (0, 3, 8)
    assert card(ops.spacetime_attention, *qkv(1, 0, 5, 2, 16, BF16)).shape == (1, 0, 2, 16)
    assert not card.launches
