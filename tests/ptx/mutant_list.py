"""The mutants: for each kernel at least ten ways to get it wrong, and the test that must notice."""

from __future__ import annotations

from ptx.mutants import Mutant
from ptx.triton_mutants import TRITON

ACCURACY, BITS, FURTHER = "test_accuracy", "test_bits_of_the_reference", "test_blocks_go_on_to_further_rows"
NO_ROW = "test_an_index_that_names_no_row_makes_nan"
Changes = dict[str, tuple[str, str, str]]  # what is wrong: the text, what stands there instead, the test


def _of(op: str, changes: Changes, file: str = "") -> list[Mutant]:
    """Return mutants of one file that tests of tests/gpu/test_<op>.py must catch."""
    where = file or f"csrc/cuda/{op}.cu"
    return [
        Mutant(f"{op}: {name}", where, old, new, f"tests/gpu/test_{op}.py::{check}")
        for name, (old, new, check) in changes.items()
    ]


ADALN = _of(
    "adaln",
    {
        "mean forgotten": ("p.layer ? share(sum(total), width_f, inverse) : 0.0f", "0.0f", ACCURACY),
        "mean in an RMS norm too": ("p.layer ? share(sum(total)", "true ? share(sum(total)", ACCURACY),
        "mean of the sum": ("share(sum(total), width_f, inverse) : 0.0f", "sum(total) : 0.0f", ACCURACY),
        "variance not divided": ("share(sum(squares), width_f, inverse) + p.eps", "sum(squares) + p.eps", ACCURACY),
        "epsilon forgotten": ("inverse) + p.eps", "inverse)", "test_special_values"),
        "values past the end are squared": ("inside ? y[i][j] - mean : 0.0f", "y[i][j] - mean", ACCURACY),
        "scale without the one": ("1.0f + operand[j], shift[j]", "operand[j], shift[j]", ACCURACY),
        "shift forgotten": ("1.0f + operand[j], shift[j]", "1.0f + operand[j], 0.0f", ACCURACY),
        "scale and shift exchanged": ("shift_at + p.to_scale + at, inside", "shift_at + at, inside", ACCURACY),
        "gain forgotten": ("y[i][j] *= operand[j];", "y[i][j] *= 1.0f;", ACCURACY),
        "bias multiplied": ("y[i][j] += operand[j];", "y[i][j] *= operand[j];", ACCURACY),
        "one row of the table for all": ("timestep * p.table.stride", "0 * p.table.stride", ACCURACY),
        "samples and tokens exchanged": ("b = row / L, l = row % L", "b = row % L, l = row / L", ACCURACY),
        "rows past the end": ("row < rows ? D : 0", "D", ACCURACY),
        "one value too many": ("row < rows ? D : 0", "row < rows ? D + 1 : 0", ACCURACY),
        "grid step of one block": ("start += gridDim.x * blockDim.y", "start += 65536", FURTHER),
        "a missing row is the first": ("timestep < 0 ? NAN : factor", "factor", NO_ROW),
        "rounded before the modulation": (
            "y[i][j] *= timestep < 0 ? NAN : factor;",
            "y[i][j] = rounded<T>(y[i][j] * (timestep < 0 ? NAN : factor));",
            "test_rounded_once",
        ),
        "sum of squares in bf16": (
            "squares = fmaf(y[i][j], y[i][j], squares);",
            "squares = rounded<Bf16>(fmaf(y[i][j], y[i][j], squares));",
            ACCURACY,
        ),
        "variance by a difference": (
            "inside ? y[i][j] - mean : 0.0f;\n        squares = fmaf(y[i][j], y[i][j], squares);",
            "inside ? (squares = fmaf(y[i][j], y[i][j], squares) - mean * mean, y[i][j] - mean) : 0.0f;",
            "test_a_large_mean_costs_no_digits",
        ),
    },
)
ROW_SUM = _of(
    "adaln",
    {
        "barrier of a row's sum deleted": ("    __syncthreads();\n", "", ACCURACY),
        "one half for all sums": ("half_ ^= 1;", "", ACCURACY),
        "first lane only": ("lane < lanes_ / 32 ?", "lane < 1 ?", ACCURACY),
        "a warp too few": ("lane < lanes_ / 32 ?", "lane < lanes_ / 32 - 1 ?", ACCURACY),
        "a warp too many": ("lane < lanes_ / 32 ?", "lane < lanes_ / 32 + 1 ?", ACCURACY),
        "half of the lanes": ("for (int i = lanes / 2; i > 0", "for (int i = lanes / 4; i > 0", ACCURACY),
        "halves of a sector not swapped": ("v[i] = odd ? swapped : even_part[i]", "v[i] = even_part[i]", ACCURACY),
        "an odd number of packs": ("both ? p + 8 : p + 4", "p + 8", ACCURACY),
    },
    "csrc/cuda/rows.h",
)
GATE_RESIDUAL = _of(
    "gate_residual",
    {
        "residual forgotten": ("__fadd_rn(sum[i][j], __fmul_rn", "__fadd_rn(0.0f, __fmul_rn", ACCURACY),
        "product fused": (
            "__fadd_rn(sum[i][j], __fmul_rn(branch[i][j], factor))",
            "fmaf(branch[i][j], factor, sum[i][j])",
            BITS,
        ),
        "product rounded to the dtype": (
            "__fmul_rn(branch[i][j], factor)",
            "rounded<T>(__fmul_rn(branch[i][j], factor))",
            BITS,
        ),
        "a step forgotten": ("at = base + i * step;", "at = base;", BITS),
        "y by the strides of x": (
            "b * p.y_strides[0] + l * p.y_strides[1]",
            "b * p.x_strides[0] + l * p.x_strides[1]",
            "test_strides",
        ),
        "samples and tokens exchanged": (
            "b = row / L, l = row % L",
            "b = row % L, l = row / L",
            BITS,
        ),
        "first gate for all": ("timestep * p.gate.stride + at", "at", BITS),
        "gate of the next value": ("timestep * p.gate.stride + at", "timestep * p.gate.stride + (at ^ 1)", ACCURACY),
        "rows past the end": ("row < rows ? D : 0", "D", BITS),
        "one value too many": ("row < rows ? D : 0", "row < rows ? D + 1 : 0", BITS),
        "only the first round": ("round < rounds", "round < 1", BITS),
        "grid step of one block": ("start += gridDim.x * blockDim.y", "start += 65536", FURTHER),
        "a missing row is the first": ("timestep < 0 ? NAN : gate", "timestep < -1 ? NAN : gate", NO_ROW),
        "a store without its mask": ("if (base + i * step < width) store", "store", BITS),
    },
)
QK_NORM_ROPE = _of(
    "qk_norm_rope",
    {
        "squares of the last value only": (
            "squares = fmaf(y[i][j], y[i][j], squares)",
            "squares = y[i][j] * y[i][j]",
            ACCURACY,
        ),
        "epsilon forgotten": ("fmaf(sum(squares), inverse, p.eps)", "sum(squares) * inverse", "test_special_values"),
        "sum not divided": ("fmaf(sum(squares), inverse, p.eps)", "sum(squares) + p.eps", ACCURACY),
        "gain forgotten": ("y[i][j] *= factor * gain[i][j]", "y[i][j] *= factor", ACCURACY),
        "rotated backwards": ("even * c[j / 2] - odd", "even * c[j / 2] + odd", ACCURACY),
        "odd value turned by itself": ("odd * c[j / 2] + even", "odd * c[j / 2] + odd", ACCURACY),
        "sign of a lone value's sine": ("(at % 2 ? s[0] : -s[0])", "(at % 2 ? -s[0] : s[0])", ACCURACY),
        "angle of another pair": ("load(cos + pos / 2, c)", "load(cos + pos, c)", ACCURACY),
        "halves not swapped": ("second ? own[0] : own[2], 1)", "second ? own[2] : own[0], 1)", ACCURACY),
        "another token's angles": ("p.cos + l * p.cos_stride", "p.cos + (l + 1) % L * p.cos_stride", ACCURACY),
        "one value too many": ("row < rows ? D : 0", "row < rows ? D + 1 : 0", ACCURACY),
        "rows past the end": ("row < rows ? D : 0", "D", ACCURACY),
        "another head": ("row % heads * p.x_strides[2]", "row / heads * p.x_strides[2]", ACCURACY),
        "rounded before the gain": (
            "y[i][j] *= factor * gain[i][j]",
            "y[i][j] = rounded<Bf16>(y[i][j] * factor) * gain[i][j]",
            ACCURACY,
        ),
        "angles of the first step for all": ("i == 0 || !same_angles", "i == 0", ACCURACY),
        "grid step of one block": ("start += gridDim.x * blockDim.y", "start += 65536", FURTHER),
    },
)
SPACETIME_ATTENTION = _of(
    "spacetime_attention",
    {
        "barrier of a tile deleted": (
            "__syncthreads();  // the tile is there, and nobody reads the last one any more\n",
            "\n",
            ACCURACY,
        ),
        "barrier of the queries deleted": ("copy_wait<1>();\n    __syncthreads();", "copy_wait<1>();", ACCURACY),
        "wait weakened": ("    copy_wait<0>();\n", "    copy_wait<1>();\n", ACCURACY),
        "queries not waited for": ("copy_wait<1>();", "copy_wait<2>();", ACCURACY),
        "mask dropped": ("if (left - i < C::part) warp.hide(", "if (false) warp.hide(", ACCURACY),
        "mask one key late": ("n * 8 + e % 2 >= left", "n * 8 + e % 2 > left", ACCURACY),
        "zeros not filled": ("row + i < left ? 16 : 0", "16", ACCURACY),
        "scale forgotten": ("fabsf(p.scale) * kLog2e", "kLog2e", ACCURACY),
        "sign of the scale forgotten": ("pair ^ 0x80008000", "pair", "test_scale"),
        "sums not shrunk": ("sum[m][n][2 * h] *= shrink, ", "", "test_scores_of_very_different_size"),
        "total not shrunk": ("        total[m][h] *= shrink;\n", "", "test_scores_of_very_different_size"),
        "reference never raised": ("if (__any_sync(kWholeWarp, passed)) raise", "if (false) raise", ACCURACY),
        "total of two lanes": (
            "        all += __shfl_xor_sync(kWholeWarp, all, 2);\n",
            "",
            ACCURACY,
        ),
        "bias in another base": ("(e % 2 ? two.y : two.x) * kLog2e", "(e % 2 ? two.y : two.x)", "test_key_bias"),
        "values by the strides of the keys": (
            "values(p.v, p.v_strides, j, j.k0)",
            "values(p.v, p.k_strides, j, j.k0)",
            "test_heads_before_tokens",
        ),
        "last query left out": ("if (first + row + i < j.q1)\n", "if (first + row + i + 1 < j.q1)\n", ACCURACY),
        "rows past the end stored": ("if (first + row + i < j.q1)\n", "if (true)\n", ACCURACY),
        "logarithm of another base": ("fmaf(log2_fast(all), kLn2, ", "fmaf(log2_fast(all), 1.0f, ", ACCURACY),
        "chunks not swizzled": ("(chunk ^ row % 8) * 16;\n    from", "chunk * 16;\n    from", ACCURACY),
        "keys of the sample before": (
            "j.k0 = p.k_offsets[s],",
            "j.k0 = p.k_offsets[max(s - 1, 0)],",
            "test_packed_samples",
        ),
        "hidden by the first half's count": (
            "warp.hide(left - i)",
            "warp.hide(left)",
            "test_accuracy[several heads-bf16]",
        ),
        "rows past the end read": ("row + i < left ? 16 : 0", "row + i <= left ? 16 : 0", "test_accuracy[200-bf16]"),
        "maximum of two lanes": (
            "top = fmaxf(top, __shfl_xor_sync(kWholeWarp, top, 2));",
            "",
            "test_scores_of_very_different_size",
        ),
        "sums rounded to bf16": (
            "mma<T>(sum[m][2 * n], weights[m], b[0], b[1]);",
            "mma<T>(sum[m][2 * n], weights[m], b[0], b[1]);\n"
            "          for (auto& x : sum[m][2 * n]) x = __bfloat162float(__float2bfloat16_rn(x));",
            "test_accuracy[200-fp16]",
        ),
        "second stage never used": (
            "const std::uint32_t stage = stages + tile % 2 * C::stage_bytes;",
            "const std::uint32_t stage = stages;",
            "test_accuracy[200-bf16]",
        ),
        "result through the stage being read": (
            "shared + tiles % 2 * C::stage_bytes",
            "shared + (tiles + 1) % 2 * C::stage_bytes",
            "test_accuracy[200-bf16]",
        ),
        "stride of heads between rows": (
            "stride = 2 * step * strides[1]",
            "stride = 2 * step * strides[2]",
            "test_views_of_one_fused_tensor",
        ),
        "reference raised too late for fp16": (
            "constexpr float kSlack = 8;",
            "constexpr float kSlack = 20;",
            "test_weights_stay_within_fp16",
        ),
        "divided by no weights": (
            "all == 0 ? 0.0f : reciprocal_fast(all)",
            "reciprocal_fast(all)",
            "test_keys_that_are_hidden",
        ),
        "bias of the other stage": ("+ tile % 2 * C::keys + i", "+ (tile + 1) % 2 * C::keys + i", "test_key_bias"),
        "scale 0 taken for another": (
            "p.scale == 0 ? kLog2e : fabsf(p.scale) * kLog2e",
            "fabsf(p.scale) * kLog2e",
            "test_scale",
        ),
        "sample before the first tile": (
            "middle <= first ? s : beyond",
            "middle < first ? s : beyond",
            "test_packed_samples",
        ),
        "offsets trusted": (
            "j.k1 = min(p.k_offsets[s + 1], j.k1)",
            "j.k1 = p.k_offsets[s + 1]",
            "test_offsets_beyond_the_end_touch_nothing",
        ),
    },
)
PATCH_EMBED = _of(
    "patch_embed",
    {
        "frame inside a patch": ("frames % pt * strides[2]", "frames / pt * strides[2]", ACCURACY),
        "row inside a patch": ("y = rows % ph", "y = 0", ACCURACY),
        "another row": ("rows % plan.h", "rows / plan.h", ACCURACY),
        "one sample for all": ("samples * p.video_strides[0]", "0 * p.video_strides[0]", ACCURACY),
        "values past the patch": ("if (k < K) values[i]", "values[i]", ACCURACY),
        "pairs past the patch": ("if (base && 2 * pair < plan.K)", "if (base)", ACCURACY),
        "pairs past the end": ("first < plan.tokens ? video", "true ? video", ACCURACY),
        "tokens exchanged": ("segment * kSegment + j, pair", "segment * kSegment + (j ^ 1), pair", ACCURACY),
        "weights past the end": ("tile * kFeatures + row < D && k < plan.K", "k < plan.K", ACCURACY),
        "tokens past the end": ("token + row >= plan.tokens || d >= D", "d >= D", ACCURACY),
        "bias forgotten": ("      sums.x += to_float(bias[0]), sums.y += to_float(bias[1]);\n", "", ACCURACY),
        "bias of the first pair": ("(stage + kWeightsBytes) + column", "(stage + kWeightsBytes)", ACCURACY),
        "last values left out": (
            "slice * kSlice + k * kChunk >= plan.K",
            "slice * kSlice + (k + 2) * kChunk >= plan.K",
            ACCURACY,
        ),
        "results after every slice": ("if (slice + 1 < plan.slices) return;", "if (slice < 0) return;", ACCURACY),
        "sums not cleared": (
            "    product.clear();\n    __syncthreads();",
            "    __syncthreads();",
            "test_a_block_goes_on_to_further_features",
        ),
        "barrier of the room deleted": (
            "__syncthreads();  // the next step's barrier comes before the room is filled again",
            "",
            ACCURACY,
        ),
        "stages in one place": ("stage = stage + 1 == kStages ? 0 : stage + 1;", "stage = 0;", ACCURACY),
    },
)
PRODUCT = _of(
    "patch_embed",
    {
        "barrier of the pipeline deleted": ("    __syncthreads();  // all has", "    // all has", ACCURACY),
        "wait weakened": ("copy_wait<kStages - 2>();", "copy_wait<kStages - 1>();", ACCURACY),
        "chunks in their order": ("(chunk) ^ turn", "(chunk)", "test_work"),
        "columns twice": ("rows[i], columns[2], columns[3]", "rows[i], columns[0], columns[1]", ACCURACY),
        "chunks of the columns": ("return lane_ / 8 % 2;", "return lane_ / 16;", ACCURACY),
        "chunks of the rows": ("a_chunk() const { return lane_ / 16; }", "a_chunk() const { return 0; }", ACCURACY),
        "rows 8 to 15": ("row_ + 16 * i + 8 * h + g", "row_ + 16 * i + g", ACCURACY),
        "pairs turned": ("pack<T>(sums.x, sums.y)", "pack<T>(sums.y, sums.x)", ACCURACY),
        "sums in the type of the operands": (
            "        mma<T>(sum_[i][2 * j + 1], rows[i], columns[2], columns[3]);\n",
            "        mma<T>(sum_[i][2 * j + 1], rows[i], columns[2], columns[3]);\n"
            "        for (float& sum : sum_[i][2 * j + 1]) sum = rounded<T>(sum);\n",
            ACCURACY,
        ),
        "last value left out": ("if (i < count) bits", "if (i + 1 < count) bits", ACCURACY),
    },
    "csrc/cuda/product.h",
)
PIECES, FUSED = "test_frames_may_come_in_pieces", "test_norm_upsampling_and_residual"
PADDING = _of(
    "causal_conv3d",
    {"zeros not filled": ("from, count > 0 ? 16 : 0", "from, 16", ACCURACY)},
    "csrc/cuda/product.h",
)
CAUSAL_CONV3D = _of(
    "causal_conv3d",
    {
        "a frame of x from the cache": ("old = f < past", "old = f <= past", PIECES),
        "new cache a frame late": ("kept = f - plan.T;", "kept = f - plan.T - 1;", PIECES),
        "frames before the start": ("t >= past ? 0 : past - t", "t >= past ? 0 : 0", ACCURACY),
        "scale forgotten": ("(values[2 * j + e]) * scale * gains", "(values[2 * j + e]) * gains", FUSED),
        "gain forgotten": (" * scale * gains[2 * j + e];", " * scale;", FUSED),
        "SiLU forgotten": (
            "pair[e] = v * reciprocal_fast(1.0f + exp2_fast(v * -1.442695041f));",
            "pair[e] = v;",
            FUSED,
        ),
        "exponential of another base": ("v * -1.442695041f", "-v", FUSED),
        "norm for each row of taps": ("if (read.row != 0 || !p.gamma.data)", "if (!p.gamma.data)", FUSED),
        "scales of the first frame": ("(read.frame - first_frame) * plan.slab_pixels", "0", FUSED),
        "squares of half the lanes": ("warp_sum(sum, kLanes)", "warp_sum(sum, kLanes / 2)", FUSED),
        "length of zero": ("fmaxf(sum, 1e-24f)", "sum", "test_zeros_and_special_values"),
        "pixels around the frame": ("count = inside ? plan.C - channel", "count = true ? plan.C - channel", ACCURACY),
        "taps upside down": ("read.row - pad_h", "pad_h - read.row", ACCURACY),
        "the first tap for all": (", from += p.weight_strides[4], stage", ", stage", ACCURACY),
        "results past the end": ("exist = i < results ? count : 0", "exist = count", ACCURACY),
        "slabs in one place": ("slab = slab + 1 == kStages ? 0 : slab + 1;", "slab = 0;", ACCURACY),
        "upsampled edge": ("(y0 - pad_h) >> up, left", "(y0 >> up) - pad_h, left", FUSED),
        "residual forgotten": ("    if (!p.residual) return;\n", "    return;\n", FUSED),
        "bias of the first column": ("(bias + column)", "(bias)", ACCURACY),
        "pixels past the row": ("y < out_h && x < out_w", "y < out_h", ACCURACY),
        "barrier of the scales deleted": (
            "    __syncthreads();\n  }\n\n  ProductOf",
            "  }\n\n  ProductOf",
            FUSED,
        ),
        "barrier before the room deleted": ("  __syncthreads();\n  const int out_h", "  const int out_h", ACCURACY),
        "barrier of the residual deleted": (
            "    __syncthreads();\n  }\n  product.keep",
            "  }\n  product.keep",
            FUSED,
        ),
        "barrier of the results deleted": (
            "  __syncthreads();\n  each(p.out_strides",
            "  each(p.out_strides",
            ACCURACY,
        ),
    },
)

NORM_SILU = _of(
    "norm_silu",
    {
        "squares of the last value only": (
            "squares = fmaf(y[i][j], y[i][j], squares);",
            "squares = y[i][j] * y[i][j];",
            "test_accuracy",
        ),
        "squares of a tile's last channel only": (
            "squares[j] = fmaf(y[i][j], y[i][j], squares[j]);",
            "squares[j] = y[i][j] * y[i][j];",
            "test_accuracy",
        ),
        "gamma not scaled": ("(gamma[i][j] * root)", "gamma[i][j]", "test_accuracy"),
        "gamma of a tile not scaled": ("(gamma[0] * root)", "gamma[0]", "test_accuracy"),
        "SiLU without the sign": ("__expf(-y)", "__expf(y)", "test_accuracy"),
        "SiLU always": ("return silu ? y *", "return true ? y *", "test_accuracy"),
        "length instead of its inverse": ("rsqrtf(squares)", "sqrtf(squares)", "test_accuracy"),
        "channels past the end": ("i < held) load(x, y[i])", "pixel < pixels) load(x, y[i])", "test_accuracy"),
        "channels past the end stored": ("if (i < held) store(out, y[i]);", "store(out, y[i]);", "test_accuracy"),
        "pixels past the end": ("if (pixel < run && c < C) load(", "if (c < C) load(", "test_accuracy"),
        "gamma of another channel": ("load(p.gamma, c, gamma)", "load(p.gamma, threadIdx.y, gamma)", "test_accuracy"),
        "sum of a warp's lanes cut short": (
            "lanes >= blockDim.x; lanes /= 2",
            "lanes > blockDim.x; lanes /= 2",
            "test_accuracy",
        ),
        "a warp forgotten": ("warp < threads / 32; ++warp", "warp + 1 < threads / 32; ++warp", "test_accuracy"),
        "rounded to bf16 before SiLU": (
            "finish(y[i][j] * factor * (gamma[i][j] * root), p.silu)",
            "finish(rounded<Bf16>(y[i][j] * factor * (gamma[i][j] * root)), p.silu)",
            "test_accuracy",
        ),
        "barrier before the factors deleted": (
            "    __syncthreads();\n    for (unsigned i = thread;",
            "    for (unsigned i = thread;",
            "test_many_channels",
        ),
        "barrier after the factors deleted": (
            "      factors[i] = inverse_length(total);\n    }\n    __syncthreads();",
            "      factors[i] = inverse_length(total);\n    }",
            "test_many_channels",
        ),
        "zeros without a limit": ("inverse > 1e12f ? 1e12f : inverse", "inverse", "test_special_values"),
        "NaN hidden": ("inverse > 1e12f ? 1e12f : inverse", "fminf(inverse, 1e12f)", "test_special_values"),
        "stride of a run of x forgotten": (
            "x += at * p.x_outer_strides[i]",
            "x += at * p.out_outer_strides[i]",
            "test_strides",
        ),
        "runs not counted on": ("place /= size;", "", "test_strides"),
        "pixels of a tile forgotten": (
            "for (unsigned i = thread; i < width; i += threads) {",
            "if (const unsigned i = thread; i < width) {",
            "test_alignment",
        ),
        "pixels done by the first blocks alone": (
            "start += gridDim.x * blockDim.y",
            "start = pixels",
            "test_blocks_go_on_to_further_pixels",
        ),
        "tiles done by the first blocks alone": (
            "tile += gridDim.x",
            "tile = tiles * runs",
            "test_blocks_go_on_to_further_pixels",
        ),
    },
)

SAMPLER_STEP = _of(
    "sampler_step",
    {
        "guidance not rounded between": (
            "rounded<T>(__fsub_rn(guided[i], input[i]))",
            "__fsub_rn(guided[i], input[i])",
            "test_bits",
        ),
        "guidance not rounded": (
            "guided[i] = rounded<T>(__fadd_rn(input[i], away))",
            "guided[i] = __fadd_rn(input[i], away)",
            "test_bits",
        ),
        "guidance forgotten": ("__fmul_rn(p.guidance, rounded<T>", "__fmul_rn(1.0f, rounded<T>", "test_bits"),
        "difference the wrong way": ("__fsub_rn(guided[i], input[i])", "__fsub_rn(input[i], guided[i])", "test_bits"),
        "sum fused": (
            "__fadd_rn(total[r][i], __fmul_rn(p.coefficients[r][j], input[i]))",
            "fmaf(p.coefficients[r][j], input[i], total[r][i])",
            "test_bits",
        ),
        "coefficients of the first result": (
            "__fmul_rn(p.coefficients[r][j], input[i])",
            "__fmul_rn(p.coefficients[0][j], input[i])",
            "test_bits",
        ),
        "the last input forgotten": (
            "int j = 2; j < p.J; ++j) {\n    load_tile",
            "int j = 2; j + 1 < p.J; ++j) {\n    load_tile",
            "test_bits",
        ),
        "an input too early": ("p.others[j - 2] + first", "p.others[j - 2 ? j - 3 : 0] + first", "test_bits"),
        "swapped halves": ("lane % 2 ? high : low", "lane % 2 ? low : high", "test_bits"),
        "from the wrong thread": (
            "const int source = i * 4 + lane / 2;",
            "const int source = i * 4 + lane % 16;",
            "test_bits",
        ),
        "second half of a tile": ("i / 4 * (kTile / 2) + lane * 4", "i / 4 * 4 + lane * 8", "test_bits"),
        "values past the end stored": ("if (place<false>(lane, i) < size) tile", "tile", "test_bits"),
        "values past the end read": ("place<false>(lane, i) < size ? to_float", "true ? to_float", "test_bits"),
        "results past the last stored": ("if (r < p.R) store_tile", "store_tile", "test_bits"),
        "accumulated in bf16": (
            "__fadd_rn(total[r][i], __fmul_rn(p.coefficients[r][j], input[i]))",
            "rounded<Bf16>(__fadd_rn(total[r][i], __fmul_rn(p.coefficients[r][j], input[i])))",
            "test_bits",
        ),
        "rounds done by the first blocks alone": (
            "round += gridDim.x)",
            "round = rounds)",
            "test_blocks_go_on_to_further_tiles",
        ),
        "tiles done by the first blocks alone": (
            "first < p.n;\n       first += step)",
            "first < p.n;\n       first = p.n)",
            "test_blocks_go_on_to_further_tiles",
        ),
    },
)

NOISE = _of(
    "noise",
    {
        "nine rounds": ("round < 10", "round < 9", "test_bits"),
        "key not advanced": ("k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;", "k0 += 0x9E3779B9u;", "test_bits"),
        "multipliers swapped": ("__umulhi(counter.x, 0xD2511F53u)", "__umulhi(counter.x, 0xCD9E8D57u)", "test_bits"),
        "words in another order": (
            "z[1][i] = normal(words.y), z[2][i] = normal(words.z)",
            "z[1][i] = normal(words.z), z[2][i] = normal(words.y)",
            "test_bits",
        ),
        "key swapped": ("p.seed, p.sample)", "p.sample, p.seed)", "test_bits"),
        "origin of x forgotten": ("p.origin[2] + x + i", "x + i", "test_bits"),
        "origin of t and y swapped": (
            "{p.origin[0] + t, p.origin[1] + y,",
            "{p.origin[1] + t, p.origin[0] + y,",
            "test_bits",
        ),
        "same counter for four pixels": ("p.origin[2] + x + i,", "p.origin[2] + x,", "test_bits"),
        "polynomial fused": (
            "__fadd_rn(__fmul_rn(polynomial(x, more...), x), c)",
            "fmaf(polynomial(x, more...), x, c)",
            "test_bits",
        ),
        "a digit of a coefficient": ("0.34171703f", "0.34171706f", "test_bits"),
        "a digit of the tail": ("1.4246343f", "1.4246345f", "test_bits"),
        "tail from 5 on": ("if (w < 6.0f)", "if (w < 5.0f)", "test_bits"),
        "sign turned": ("? -z : z", "? z : -z", "test_bits"),
        "half an ulp of p forgotten": ("0.5f), 0x1p-32f", "0.0f), 0x1p-32f", "test_bits"),
        "channels past the end": ("if (c < C) store", "store", "test_bits"),
        "frame of another row": ("t = item / across / H % T", "t = item / across % T", "test_bits"),
        "approximate square root": ("__fsqrt_rn(w)", "w * rsqrtf(w)", "test_every_operation_is_an_ieee_one"),
        "a sum that may be fused": (
            "__fsub_rn(1.0f, __fadd_rn(p, p))",
            "(1.0f - __fadd_rn(p, p))",
            "test_every_operation_is_an_ieee_one",
        ),
    },
)

UNPATCHIFY = _of(
    "unpatchify",
    {
        "row of a patch forgotten": ("{t % pt * ph + y % ph} *", "{t % pt * ph} *", "test_places"),
        "frame of a patch forgotten": ("{t % pt * ph + y % ph} *", "{y % ph} *", "test_places"),
        "column of a patch": ("if (++k == pw) k = 0, ++w;", "++w;", "test_places"),
        "column of a patch one late": ("if (++k == pw) k = 0, ++w;", "if (++k > pw) k = 0, ++w;", "test_places"),
        "halves swapped": ("even = halves<0x5410>", "even = halves<0x7632>", "test_places"),
        "registers not transposed": (
            "out[1] = {in[0].y, in[1].y, in[2].y, in[3].y};",
            "out[1] = in[1];",
            "test_places",
        ),
        "channels in the wrong order": (
            "pair(&uint4::y, out[2], out[3]);",
            "pair(&uint4::y, out[3], out[2]);",
            "test_places",
        ),
        "grid row": ("{t / pt * gh + y / ph} *", "{t / pt * gh + y % gh} *", "test_places"),
        "sample's stride forgotten": ("b * p.strides[0] + token", "token", "test_places"),
        "far channels forgotten": (
            "(item / near / across % far * near + item % near) * P",
            "item % near * P",
            "test_places",
        ),
        "near channels forgotten": ("% far * near + item % near) * P", "% far * near) * P", "test_places"),
        "rows of the video": (
            "+ row.t) * p.grid[1] * p.patch[1] + row.y)",
            "+ row.t) * p.grid[1] + row.y)",
            "test_places",
        ),
        "single: column and channel swapped": ("{x % pw} * C + c)", "{c} * pw + x % pw)", "test_places"),
        "single: stride of values forgotten": ("* C + c) * p.strides[2]]", "* C + c)]", "test_strides"),
        "places done by the first blocks alone": (
            "item += gridDim.x * kBlock) {\n    const unsigned x = item / near",
            "item = items) {\n    const unsigned x = item / near",
            "test_blocks_go_on_to_further_places",
        ),
        "single places done by the first blocks alone": (
            "item += gridDim.x * kBlock) {\n    const unsigned x = item % width",
            "item = items) {\n    const unsigned x = item % width",
            "test_blocks_go_on_to_further_places",
        ),
    },
)

MORE_QK_NORM_ROPE = _of(
    "qk_norm_rope",
    {
        "stride of heads forgotten": (
            "load(x + at / K * p.x_strides[2] + at % K, y[i])",
            "load(x + at, y[i])",
            "test_strides",
        ),
        "stride of samples forgotten": ("b * p.x_strides[0] + l", "b * L * p.x_strides[1] + l", "test_strides"),
        "rows done by the first blocks alone": (
            "start += gridDim.x * blockDim.y",
            "start = rows",
            "test_blocks_go_on_to_further_rows",
        ),
    },
)

MUTANTS: list[Mutant] = [
    *ADALN,
    *ROW_SUM,
    *GATE_RESIDUAL,
    *QK_NORM_ROPE,
    *MORE_QK_NORM_ROPE,
    *NORM_SILU,
    *SAMPLER_STEP,
    *NOISE,
    *UNPATCHIFY,
    *SPACETIME_ATTENTION,
    *PATCH_EMBED,
    *PRODUCT,
    *PADDING,
    *CAUSAL_CONV3D,
    *TRITON,
]
