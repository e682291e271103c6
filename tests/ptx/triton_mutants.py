"""The mutants of the Triton kernels: for each at least ten ways to get it wrong, and the test that must notice."""

from __future__ import annotations

from ptx.mutants import Mutant

Changes = dict[str, tuple[str, str]]  # what is wrong: the text, what stands there instead
TESTS = {
    "sampler_step": "test_sampler_step_has_the_bits_of_the_reference",
    "noise": "test_noise_has_the_bits_of_the_reference",
}


def _of(op: str, changes: Changes, check: str = "") -> list[Mutant]:
    """Return mutants of kernels/<op>.py that a test of tests/gpu/test_triton_ops.py must catch."""
    test = check or TESTS.get(op, f"test_{op}")
    return [
        Mutant(f"{op} in Triton: {name}", f"kernels/{op}.py", old, new, f"tests/gpu/test_triton_ops.py::{test}")
        for name, (old, new) in changes.items()
    ]


ADALN = _of(
    "adaln",
    {
        "mean forgotten": ("(tl.sum(y, 1) * inverse_D)[:, None], 0.0)", "0.0, 0.0)"),
        "mean not divided": ("tl.sum(y, 1) * inverse_D", "tl.sum(y, 1)"),
        "mean in an RMS norm too": ("if LAYER:", "if True:"),
        "what is masked has the mean": ("tl.where(here, y - (", "tl.where(True, y - ("),
        "variance not divided": ("tl.sum(y * y, 1) * inverse_D + eps", "tl.sum(y * y, 1) + eps"),
        "scale without the one": ("y * (1.0 + scale) + shift", "y * scale + shift"),
        "shift forgotten": ("y * (1.0 + scale) + shift", "y * (1.0 + scale)"),
        "gain added": ("y *= tl.load(gain", "y += tl.load(gain"),
        "bias multiplied": ("y += tl.load(bias", "y *= tl.load(bias"),
        "scale and shift exchanged": ("tl.load(shift + to_scale, mask", "tl.load(shift + 0 * to_scale, mask"),
        "the first row for all samples": ("tl.minimum(b, U - 1)", "tl.minimum(b, 0)"),
        "one row of the index for all samples": ("index + b * index_b", "index + 0 * index_b"),
        "tokens past the end": ("here = (i < L)[:, None] & columns", "here = (i < L + 1)[:, None] & columns"),
        "values past the end": ("columns = (d < D)[None, :]", "columns = (d < D + 1)[None, :]"),
        "each step the first tokens": ("% tiles * STEPS + step) * R", "% tiles * STEPS) * R"),
    },
)
TABLES = [
    *_of(
        "adaln",
        {"a row past the table": ("(row >= 0) & (row < U)", "(row >= 0) & (row <= U)")},
        "test_rows_that_a_table_lacks_are_not_read",
    ),
    *_of(
        "adaln",
        {"a row before the table": ("(row >= 0) & (row < U)", "(row < U)")},
        "test_rows_that_a_table_lacks_are_not_read",
    ),
    *_of(
        "gate_residual",
        {"a row past the gates": ("(row >= 0) & (row < U)", "(row >= 0) & (row <= U)")},
        "test_rows_that_a_table_lacks_are_not_read",
    ),
    *_of(
        "gate_residual",
        {"a missing row is zero": ('mask=known, other=float("nan")', "mask=known, other=0.0")},
        "test_rows_that_a_table_lacks_are_not_read",
    ),
]
GATE_RESIDUAL = _of(
    "gate_residual",
    {
        "residual forgotten": ("total = stream + branch * factor", "total = branch * factor"),
        "gate forgotten": ("total = stream + branch * factor", "total = stream + branch"),
        "subtracted": ("total = stream + branch * factor", "total = stream - branch * factor"),
        "y by the strides of x": ("y + b * y_b + i[:, None] * y_l", "y + b * x_b + i[:, None] * x_l"),
        "x by the strides of out": ("x + b * x_b + i[:, None] * x_l", "x + (b * L + i[:, None]) * D"),
        "the first row for all samples": ("tl.minimum(b, U - 1)", "tl.minimum(b, 0)"),
        "tokens past the end": ("here = (i < L)[:, None] & columns", "here = (i < L + 1)[:, None] & columns"),
        "values past the end": ("columns = (d < D)[None, :]", "columns = (d < D + 1)[None, :]"),
        "index of the token before": (
            "index + b * index_b + i * index_l, mask=i < L",
            "index + b * index_b + (i - 1) * index_l, mask=(i > 0) & (i < L)",
        ),
        "the first part for all": ("tl.program_id(0) % parts * BD + tl.arange(0, BD)", "tl.arange(0, BD)"),
        "samples mixed": ("b = (place // tiles).to(tl.int64)", "b = (place % 2 * 0).to(tl.int64)"),
    },
)
QK_NORM_ROPE = _of(
    "qk_norm_rope",
    {
        "rotated backwards": (
            "tl.join(even * c - odd * s, even * s + odd * c)",
            "tl.join(even * c + odd * s, odd * c - even * s)",
        ),
        "halves instead of pairs": (
            "tl.split(tl.reshape(y, [R, BN, BK // 2, 2]))",
            "tl.split(tl.trans(tl.reshape(y, [R, BN, 2, BK // 2]), 0, 1, 3, 2))",
        ),
        "gain forgotten": ("[:, None, None] * factor", "[:, None, None]"),
        "gain of the first head": ("gain + n * K + k, mask", "gain + 0 * n + k, mask"),
        "norm of each head": (
            "tl.sum(squares, 1) * inverse_width + eps)[:, None, None]",
            "squares * inverse_width + eps)[:, :, None]",
        ),
        "squares not divided": (
            "tl.rsqrt(tl.sum(squares, 1) * inverse_width + eps)",
            "tl.rsqrt(tl.sum(squares, 1) + eps)",
        ),
        "no root": (
            "tl.rsqrt(squares * inverse_width + eps)[:, :, None]",
            "(1.0 / (squares * inverse_width + eps))[:, :, None]",
        ),
        "sine is the cosine": ("s = tl.load(sin + i * sin_l", "s = tl.load(cos + i * cos_l"),
        "angles of the first token": ("c = tl.load(cos + i * cos_l + pair", "c = tl.load(cos + 0 * i + pair"),
        "tokens past the end": ("here = (i < L) & head", "here = (i < L + 1) & head"),
        "heads past the end": ("head = (n < N) & (k < K)", "head = (n < N + 1) & (k < K)"),
        "heads not strided": ("n.to(tl.int64) * x_n", "n.to(tl.int64) * K"),
        "samples not strided": ("x + b * x_b + i * x_l", "x + b * L * x_l + i * x_l"),
        "each step the first tokens": ("% tiles * STEPS + step) * R", "% tiles * STEPS) * R"),
    },
)
NORM_SILU = [
    *_of(
        "norm_silu",
        {
            "mean of squares": ("squares = tl.sum(y * y, 1)", "squares = tl.sum(y * y, 1) / C"),
            "root forgotten": (".to(tl.float32) * root)[None, :]", ".to(tl.float32))[None, :]"),
            "gamma forgotten": ("tl.load(gamma + c, mask=c < C, other=0.0).to(tl.float32) * root", "root + 0.0 * c"),
            "SiLU always": ("if SILU:", "if True:"),
            "SiLU never": ("if SILU:", "if False:"),
            "sigmoid alone": ("y *= tl.sigmoid(y)", "y = tl.sigmoid(y)"),
            "no least length": ("tl.where(squares < 1e-24, 1e-24, squares)", "squares"),
            "channels past the end": ("(c < C)[None, :]", "(c < C + 1)[None, :]"),
            "pixels past the end": ("here = (p < run)[:, None]", "here = (p < run + 1)[:, None]"),
            "out by the strides of x": ("out + p[:, None] * out_pixel", "out + p[:, None] * x_pixel"),
            "samples mixed": ("x += i0 * x0 + i1 * x1 + i2 * x2", "x += i0 * x0 + i1 * x2 + i2 * x1"),
        },
    ),
    *_of(
        "norm_silu",
        {"NaN hidden": ("tl.where(squares < 1e-24, 1e-24, squares)", "tl.where(squares > 1e-24, squares, 1e-24)")},
        "test_norm_silu_hides_no_nan",
    ),
]
UNPATCHIFY = _of(
    "unpatchify",
    {
        "columns and rows exchanged": (
            "(t % pt) * ph + y % ph) * pw + x % pw",
            "(t % pt) * ph + x % pw) * ph + y % ph",
        ),
        "frames of a patch in one place": ("((t % pt) * ph + y % ph) * pw", "(y % ph) * pw"),
        "rows of a patch in one place": ("(t % pt) * ph + y % ph) * pw", "(t % pt) * ph) * pw"),
        "tokens by columns": ("(t // pt * gh + y // ph) * gw + x // pw", "(t // pt * gw + x // pw) * gh + y // ph"),
        "channels before pixels": ("* pw + x % pw) * C", "* pw + x % pw)"),
        "pixels past the end": ("here = (p < pixels)[:, None]", "here = (p < pixels + 1)[:, None]"),
        "channels past the end": ("(c < C)[None, :]\n    values", "(c < C + 1)[None, :]\n    values"),
        "samples not strided": ("tokens + b * s_b", "tokens + b * 0"),
        "values not strided": (".to(tl.int64) * s_f, mask", ".to(tl.int64), mask"),
        "the first channels for all": ("tl.program_id(0) % parts * BC + tl.arange(0, BC)", "tl.arange(0, BC)"),
        "one sample's channels for all": ("(b * C + c[None, :]) * pixels", "(b * 0 + c[None, :]) * pixels"),
    },
)
PATCH_EMBED = _of(
    "patch_embed",
    {
        "bias forgotten": ("acc += tl.load(bias", "acc += 0.0 * tl.load(bias"),
        "sums begin anew": (
            "acc = tl.dot(tl.trans(left), tl.trans(for_left), acc,",
            "acc = tl.dot(tl.trans(left), tl.trans(for_left), acc * 0.0,",
        ),
        "right pixels by the left's weights": (
            "tl.dot(tl.trans(right), tl.trans(for_right)",
            "tl.dot(tl.trans(right), tl.trans(for_left)",
        ),
        "right pixels forgotten": (
            'acc = tl.dot(tl.trans(right), tl.trans(for_right), acc, input_precision="ieee")',
            "acc = acc + 0.0",
        ),
        "rows of a patch exchanged with frames": ("line // ph % pt, line % ph", "line % ph, line // ph % pt"),
        "channels not strided": ("c.to(tl.int64) * v_c", "c.to(tl.int64) * 0"),
        "frames not strided by the patch": ("t.to(tl.int64) * (pt * v_t)", "t.to(tl.int64) * v_t"),
        "samples not strided": ("video + b.to(tl.int64) * v_b", "video + b.to(tl.int64) * 0"),
        "lines past the patch": ("inside = (line < lines)[:, None]", "inside = (line < lines + 1)[:, None]"),
        "weights past the patch": ("(e < lines * pw)[None, :]", "(e < lines * pw + 1)[None, :]"),
        "tokens past the end": ("here = (token < tokens)[:, None]", "here = (token < tokens + 1)[:, None]"),
        "the first features for all": ("tl.program_id(0) % parts * BN + tl.arange(0, BN)", "tl.arange(0, BN)"),
    },
)
ATTENTION = [
    *_of(
        "spacetime_attention",
        {
            "scale forgotten": ("tl.exp2(scores * factor - new_top[:, None])", "tl.exp2(scores - new_top[:, None])"),
            "sum not decayed": ("total = total * decay + tl.sum", "total = total + tl.sum"),
            "result not decayed": ("values, acc * decay[:, None])", "values, acc)"),
            "keys past the end": (
                'scores = tl.where((j < left)[None, :], scores, -float("inf"))',
                "scores = scores + 0.0",
            ),
            "keys past the end are read": (
                "mask=(j < left)[None, :] & (d < K)[:, None], other=0.0)",
                "mask=(j < left + 1)[None, :] & (d < K)[:, None], other=0.0)",
            ),
            "bias in another base": ("bias.to(tl.float32) * 1.4426950408889634", "bias.to(tl.float32)"),
            "bias of the first sample": ("key_bias += b * bias_b", "key_bias += b * 0"),
            "values by the keys' strides": ("j[:, None] * v_l + d[None, :]", "j[:, None] * k_l + d[None, :]"),
            "queries past the end": ("here = (i < q_end)[:, None]", "here = (i < q_end + 1)[:, None]"),
            "head of the first": ("k += b * k_b + n.to(tl.int64) * k_n", "k += b * k_b"),
            "logarithm in base two": ("(top + tl.log2(total)) * 0.6931471805599453", "(top + tl.log2(total))"),
            "weights of each tile alone": (
                "new_top = tl.maximum(top, tl.max(scores, 1) * factor)",
                "new_top = tl.max(scores, 1) * factor",
            ),
            "the last tile forgotten": ("if whole < k_end:", "if whole < 0:"),
            "masked columns": ("elif K < BK:", "elif K < 0:"),
        },
    ),
    *_of(
        "spacetime_attention",
        {
            "keys of the sample before": ("tl.load(k_offsets + sample + 1), Lk", "tl.load(k_offsets + sample), Lk"),
            "a tile too many": ("tile >= tl.cdiv(end - first, BM)", "tile > tl.cdiv(end - first, BM)"),
            "empty samples are not passed": (
                "tile -= tl.cdiv(end - first, BM)",
                "tile -= tl.maximum(tl.cdiv(end - first, BM), 1)",
            ),
            "nothing is nothing over nothing": ("tl.where(total == 0.0, 0.0, 1.0 / total)", "1.0 / total"),
        },
        "test_packed_attention",
    ),
    *_of(
        "spacetime_attention",
        {"hidden keys make NaN": ('tl.where(new_top == -float("inf"), 0.0, new_top)', "new_top")},
        "test_attention_to_hidden_keys",
    ),
]
SAMPLER_STEP = _of(
    "sampler_step",
    {
        "guidance forgotten": ("(guidance * (guided - base)", "(1.0 * (guided - base)"),
        "guidance from the guided": ("guided = (base + away)", "guided = (guided + away)"),
        "difference not rounded": ("(guided - base).to(dtype).to(tl.float32)", "(guided - base)"),
        "product not rounded": (").to(tl.float32)).to(dtype).to(tl.float32)", ").to(tl.float32))"),
        "sum not rounded": ("(base + away).to(dtype).to(tl.float32)", "(base + away)"),
        "values past the end": ("here = i < n", "here = i < n + 1"),
        "each result by the first coefficients": ("coefficients[r * J + j] * inputs[j]", "coefficients[j] * inputs[j]"),
        "first coefficient of all": ("total = coefficients[r * J] * inputs[0]", "total = coefficients[0] * inputs[0]"),
        "the last term forgotten": ("tl.static_range(1, J):", "tl.static_range(1, J - 1):"),
        "sample and prediction exchanged": (
            "mask=here, other=0.0), guided)",
            "mask=here, other=0.0) * 0 + guided, guided)",
        ),
        "first result for all": ("tl.store(outs[r] + i", "tl.store(outs[0] + i"),
        "multiplied and added at once": ("num_warps=4, enable_fp_fusion=False,", "num_warps=4, enable_fp_fusion=True,"),
    },
)
NOISE = _of(
    "noise",
    {
        "nine rounds": ("tl.static_range(10)", "tl.static_range(9)"),
        "keys exchanged": (
            "k0, k1 = seed.to(tl.uint32), sample.to(tl.uint32)",
            "k1, k0 = seed.to(tl.uint32), sample.to(tl.uint32)",
        ),
        "key not raised": ("k0 += 0x9E3779B9", "k0 += 0"),
        "words exchanged": ("umulhi(b, 0xCD9E8D57) ^ c1 ^ k0", "umulhi(b, 0xCD9E8D57) ^ c3 ^ k0"),
        "place not counted from the origin": ("c1 = (y0 + row % H)", "c1 = (row % H)"),
        "frames and rows exchanged": ("c0 = (t0 + row // H)", "c0 = (t0 + row % H)"),
        "the first channels for all": ("group = tl.program_id(0) // tiles", "group = tl.program_id(0) // tiles * 0"),
        "sign of all": ("tl.where(word > 0x7FFFFFFF, -z, z)", "z"),
        "another tail": ("w < 6.0", "w < 5.0"),
        "places past the end": ("here = p < places", "here = p < places + 1"),
        "channels past the end": ("mask=here & (c + 3 < C)", "mask=here"),
        "multiplied and added at once": ("num_warps=4, enable_fp_fusion=False,", "num_warps=4, enable_fp_fusion=True,"),
    },
)
TRITON = [
    *(*ADALN, *TABLES, *GATE_RESIDUAL, *QK_NORM_ROPE, *NORM_SILU, *UNPATCHIFY, *PATCH_EMBED, *ATTENTION),
    *(*SAMPLER_STEP, *NOISE),
]
