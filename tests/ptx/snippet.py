"""A few lines of PTX as a function of arrays: how the runner's own tests try one instruction."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptx.dtypes import Array
from ptx.kernel import Kernel

HEAD = ".version 8.8\n.target sm_90a\n.address_size 64\n"


def wrap(body: str, arguments: int = 1, declarations: str = "") -> str:
    """Return a kernel `snippet` of some pointers, in %rd0, %rd1..., with the thread's number in %tid and %tid64."""
    parameters = ", ".join(f".param .u64 p{i}" for i in range(arguments))
    loads = "\n".join(f"ld.param.u64 %rd{i}, [p{i}];" for i in range(arguments))
    return f"""{HEAD}
{declarations}
.visible .entry snippet({parameters}) {{
.reg .pred %p<16>; .reg .b16 %h<16>; .reg .b32 %r<32>; .reg .f32 %f<32>; .reg .b64 %rd<32>; .reg .f64 %fd<8>;
.reg .b32 %tid; .reg .b64 %tid64;
mov.u32 %tid, %tid.x; cvt.u64.u32 %tid64, %tid;
{loads}
{body}
ret;
}}"""


def evaluate(code: str, *inputs: Array, out: Any) -> Array:
    """Return %d after `code`, for each thread; %a, %b, %c... hold the inputs' elements, registers are of their size."""
    count = len(inputs[0])
    result = np.zeros(count, out)
    letters = "abcefg"[: len(inputs)]
    lines = [f".reg .b{8 * result.itemsize} %d; mov.b{8 * result.itemsize} %d, 0;"]
    for i, (letter, values) in enumerate(zip(letters, inputs, strict=True)):
        size = values.itemsize
        lines += [f".reg .b{8 * size} %{letter};", f"mad.lo.u64 %rd{10 + i}, %tid64, {size}, %rd{i};"]
        lines += [f"ld.global.b{8 * size} %{letter}, [%rd{10 + i}];"]
    lines += [code, f"mad.lo.u64 %rd20, %tid64, {result.itemsize}, %rd{len(inputs)};"]
    lines += [f"st.global.b{8 * result.itemsize} [%rd20], %d;"]

    Kernel(wrap("\n".join(lines), len(inputs) + 1)).launch((1,), (count,), [*inputs, result])
    return result
