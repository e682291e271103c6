"""A GPU that is not there: the extension built against a runtime whose kernels the PTX runner executes on the CPU.

Tensors on the "GPU" are CPU tensors in the fake runtime's arena. Inside `with gpu:` torch says of them that they are on
cuda:0, and what torch makes from them lies there too; all else, in Python and in C++, is what runs on a real GPU.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pybind11
import torch
from ptx import GBASE, Kernel
from ptx.compiler import ROOT, nvcc
from ptx.counters import Counters
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
STREAM = 0x5EED  # what torch says is the current stream
MOST_SHARED = 99 * 1024  # bytes that a block may have on the smallest cards the kernels are for: sm_86, sm_89, sm_120
HANDLER = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint), ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int),
    ctypes.POINTER(ctypes.c_void_p),
)


def build() -> Path:
    """Build the extension with the fake runtime inside; only what changed since the last time is compiled."""
    folder = ROOT / "build" / "fake_gpu"
    folder.mkdir(parents=True, exist_ok=True)
    runtime = folder / "fake_cudart.o"
    scripts = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": scripts, "CUDACXX": str(nvcc())}
    options = {
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CUDA_ARCHITECTURES": "80-virtual",
        "CMAKE_CUDA_RUNTIME_LIBRARY": "None",
        "CMAKE_CUDA_FLAGS": "--no-compress",
        "CMAKE_MODULE_LINKER_FLAGS": f"{runtime} -Wl,-Bsymbolic",
        "PYSORA_BASELINE": "ON",
        "PYSORA_CUDA": "ON",
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    compiler = ["g++", "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    source = Path(__file__).with_name("fake_cudart.cpp")
    commands = [
        [*compiler, *(f"-I{d}" for d in _cuda_headers()), "-c", str(source), "-o", str(runtime)],
        ["cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())],
        ["cmake", "--build", str(folder)],
    ]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in commands:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return folder / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"


def _cuda_headers() -> list[Path]:
    """Return the toolkit's folders of headers, as nvcc itself names them."""
    command = [str(nvcc()), "--dryrun", "-x", "cu", "-c", os.devnull]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    line = next(line for line in listing.splitlines() if line.startswith("#$ INCLUDES="))
    return [Path(word.strip('" ').removeprefix("-I")) for word in line.partition("=")[2].split() if "-I" in word]


def load(binary: Path) -> Any:
    """Import the extension at a path, beside the installed one."""
    loader = importlib.machinery.ExtensionFileLoader("_C", str(binary))
    spec = importlib.util.spec_from_loader("_C", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@functools.cache
def _kernel(name: str, ptx: str) -> Kernel:
    return Kernel(ptx, name)


@dataclass(frozen=True)
class Launch:
    """One launch that the extension made, and what the runner counted."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int
    device: int
    counters: Counters = field(repr=False)


class FakeGpu(TorchFunctionMode):
    """The device. As a context it makes torch believe in it.

    launches: what ran since the last `reset`.
    """

    def __init__(self, binary: Path) -> None:
        super().__init__()
        self.native = load(binary)
        self.runtime = ctypes.CDLL(str(binary))
        for name in ("fake_allocate", "fake_allowed"):
            getattr(self.runtime, name).restype = ctypes.c_void_p
        self.runtime.fake_top.restype = ctypes.c_size_t
        self._handler = HANDLER(self._launched)  # must outlive every launch
        self.launches: list[Launch] = []
        self.error: BaseException | None = None
        self.execute = True
        self.reset()

    def reset(self, most_shared: int = MOST_SHARED) -> None:
        """Forget all tensors, launches and counts."""
        self.runtime.fake_reset(self._handler, ctypes.c_size_t(most_shared))
        self.launches.clear()
        self.error, self.execute = None, True

    # ---- memory ----

    def owns(self, tensor: Tensor) -> bool:
        """Return whether a tensor lies on the "GPU"."""
        plain = type(tensor) in (Tensor, torch.nn.Parameter)
        return plain and 0 <= tensor.untyped_storage().data_ptr() - GBASE < 1 << 30

    def empty(self, like: Tensor) -> Tensor:
        """Return a tensor on the "GPU" with the shape, strides and dtype of one on the CPU, full of NaN."""
        span = 1 + sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True)) if like.numel() else 1
        size = span * like.element_size()
        address = self.runtime.fake_allocate(ctypes.c_size_t(size))
        if not address:
            raise MemoryError("the fake GPU's arena is used up")
        memory = (ctypes.c_uint8 * size).from_address(address)
        return torch.frombuffer(memory, dtype=like.dtype).as_strided(like.shape, like.stride())

    def put(self, tensor: Tensor) -> Tensor:
        """Return a copy on the "GPU", as a view of as much memory between red zones: what is not of it is NaN."""
        return self.empty(tensor.detach()).copy_(tensor.detach())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        here = any(self.owns(t) for t in tensors)
        if func == Tensor.device.__get__:
            return CUDA if here else func(*args)
        if func == Tensor.is_cuda.__get__:
            return here
        if name == "cpu":
            return func(*args, **kwargs).clone()
        if name == "to":
            named = {"device": (torch.device, str), "dtype": torch.dtype}
            kwargs |= {n: a for a in args[1:] for n, kind in named.items() if isinstance(a, kind)}
            args = (args[0], *(a for a in args[1:] if not isinstance(a, (torch.device, str, torch.dtype))))
        if kwargs.get("device") is not None:
            here = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        if not here:
            return result
        fresh = "empty" in name

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor) or self.owns(value):
                return value
            return self.empty(value) if fresh else self.put(value)

        return tree_map(move, result)

    # ---- launches ----

    def _launched(self, name: bytes, ptx: bytes, sizes: Any, shared: int, stream: int, device: int, args: Any) -> int:
        """Execute a kernel; an error is kept for the test and told to the caller as a failed launch."""
        try:
            grid, block = tuple(sizes[0:3]), tuple(sizes[3:6])
            kernel = _kernel(name.decode(), ptx.decode())
            kernel.prof = {}
            if self.execute:
                top = -(-self.runtime.fake_top() // 4096) * 4096
                arena = np.frombuffer((ctypes.c_uint8 * top).from_address(GBASE), np.uint8)
                allowed = np.frombuffer((ctypes.c_uint8 * top).from_address(self.runtime.fake_allowed()), bool)
                pointers = [args[i] for i in range(len(kernel.params))]
                kernel.launch_host(grid, block, pointers, shared, arena, allowed)
            self.launches.append(Launch(kernel.name, grid, block, shared, stream, device, kernel.counters))
            return 0
        except Exception as error:  # ctypes would print and drop it
            self.error = error
            return 1

    def count(self, function: str | None = None) -> int:
        """Return how often a function of CUDA's runtime that allocates, waits or copies was called; None: any."""
        return self.runtime.fake_counts() if function is None else self.runtime.fake_count(function.encode())
