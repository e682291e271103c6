"""Runs PTX on the CPU: kernels from nvcc and from Triton, executed, checked and counted without a GPU.

kernel = Kernel(compile("csrc/cuda/adaln.cu"), "adaln_kernel")
kernel.prof = {}                                 # count the work
kernel.launch((rows,), (128,), [Struct(x, ...)]) # buffers are updated in place; PTXError says what went wrong
kernel.counters.coalescing_ratio()
"""

from ptx.arguments import Struct
from ptx.compiler import compile, unavailable
from ptx.errors import PTXError
from ptx.kernel import GBASE, Kernel

__all__ = ["GBASE", "Kernel", "PTXError", "Struct", "compile", "unavailable"]
