"""Triton kernels without a GPU: launched as in production, compiled for a card, and run as PTX or by the interpreter.

On a machine with a GPU `kernel[grid](...)` ends in `JITFunction.run`. Here `Card.launching` puts a function in its
place that compiles the kernel for the card with the very specialisation that the arguments ask for, and gives its PTX
and the memory of the tensors to the PTX runner. `Interpreter` sends a call to a process in which Triton interprets its
source: that has to be decided before Triton is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import re
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from ptx import GBASE, Kernel
from ptx.counters import Counters
from ptx.facts import Facts, read
from torch import Tensor

from pysora import ops
from pysora.ops import _triton
from pysora.ops._registry import Impl


def triton_of(op: ops.Op[Any]) -> Impl:
    """Return the op's Triton backend."""
    (impl,) = (i for i in op.impls if i.backend == "triton")
    return impl


def refusal(op: ops.Op[Any], *args: Any) -> str | None:
    """Return why the backend refuses arguments that lie on the CPU, as if they lay on a GPU."""
    with mock.patch.object(_triton, "misplaced", lambda *_: None):
        return triton_of(op).unsupported(*op.bind(args, {}))


def run(op: ops.Op[Any], *args: Any) -> Any:
    """Run an op's Triton backend with the default arguments filled in; outputs start as NaN."""
    assert refusal(op, *args) is None, refusal(op, *args)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # empty memory is then filled with NaN
    try:
        return triton_of(op).run(*op.bind(args, {}))
    finally:
        torch.use_deterministic_algorithms(before)


def _capability(of_the_card: tuple[int, int]) -> Any:
    return mock.patch.object(torch.cuda, "get_device_capability", lambda _: of_the_card)


class Interpreter:
    """A process in which Triton interprets kernels."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_interpret, args=(theirs,), daemon=True)
        self.process.start()

    def __call__(self, op: ops.Op[Any], *args: Any) -> Any:
        self.pipe.send_bytes(pickle.dumps((op.name, args)))
        result, error = pickle.loads(self.pipe.recv_bytes())
        assert error is None, error
        return result

    def close(self) -> None:
        """End the process."""
        self.pipe.close()
        self.process.join()


def _interpret(pipe: Any) -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    _mend_bf16()
    torch.set_num_threads(1)
    while True:
        try:
            name, args = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            with _capability((8, 0)):
                answer = run(ops.OPS[name], *args), None
        except Exception:
            answer = None, traceback.format_exc()
        pipe.send_bytes(pickle.dumps(answer))


def _mend_bf16() -> None:
    """Mend Triton 3.9's interpreter, which multiplies bf16 as integers and truncates what it should round to bf16."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    create_dot, cast_impl = builder.create_dot, builder.cast_impl

    def widened(value: Any) -> Any:
        if value.dtype.scalar != tl.bfloat16:
            return value
        return handle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(self, widened(a), widened(b), *rest)

    def cast(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
            return cast_impl(self, source, to)
        bits = np.ascontiguousarray(source.data, np.float32).view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return handle(np.where(np.isnan(source.data), np.uint16(0x7FC0), rounded), tl.bfloat16)

    builder.create_dot, builder.cast_impl = dot, cast


@dataclass
class Launch:
    """A kernel as it was launched; where it was executed too, what the PTX runner counted."""

    name: str
    grid: tuple[int, int, int]
    warps: int
    shared: int
    ptx: str
    cubin: bytes | None
    counters: Counters = field(default_factory=Counters)

    def bytes(self, width: int | None = None) -> int:
        """Return the bytes that go to and from global memory, all or those of accesses `width` bytes wide."""
        accesses = [a for a in self.counters.accesses.values() if a.space == "global"]
        return sum(a.bytes for a in accesses if width in (None, a.size))


class Card:
    """Compiles for an architecture, and executes where it is told to."""

    def __init__(self, arch: int, execute: bool = True, assemble: bool = False) -> None:
        self.arch, self.execute, self.assemble = arch, execute, assemble
        self.launches: list[Launch] = []

    def __call__(self, op: ops.Op[Any], *args: Any) -> Any:
        with self.launching():
            return run(op, *args)

    @contextlib.contextmanager
    def launching(self) -> Iterator[None]:
        """Take the place of Triton's launcher."""
        from triton.runtime.jit import JITFunction

        def instead(function: Any, *args: Any, **kwargs: Any) -> None:
            self.launch(function, *args, **kwargs)

        with mock.patch.object(JITFunction, "run", instead), _capability(divmod(self.arch, 10)):
            yield

    def launch(self, function: Any, *args: Any, grid: tuple[int, ...], warmup: bool, **kwargs: Any) -> None:
        """Compile, and execute on the memory of the tensors among `args`."""
        compiled, arguments = self._compile(function, args, kwargs)
        launch = Launch(function.__name__, (*grid, 1, 1)[:3], *compiled)
        self.launches.append(launch)
        if self.execute:
            _execute(launch, arguments)

    def _compile(self, function: Any, args: Any, kwargs: Any) -> tuple[tuple[int, int, str, bytes | None], list[Any]]:
        """As `JITFunction.run` and `triton.compile`, for a card that is not here; to PTX, or to a cubin too."""
        from triton._C.libtriton import ir
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource, make_backend
        from triton.runtime.jit import create_function_from_signature

        target = GPUTarget("cuda", self.arch, 32)
        backend = make_backend(target)
        bind = create_function_from_signature(function.signature, function.params, backend)
        bound, special, _ = bind(*args, debug=False, **kwargs)
        options, signature, constants, attributes = function._pack_args(backend, kwargs, bound, special, kwargs)
        arguments = list(_arguments(bound, signature, constants))
        key = (
            function.__name__,
            self.arch,
            self.assemble,
            str(signature),
            str(constants),
            str(attributes),
            str(options),
        )
        if key not in _COMPILED:
            source = ASTSource(function, signature, constants, attributes)
            context = ir.context()
            ir.load_dialects(context)
            backend.load_dialects(context)
            functions = backend.get_codegen_implementation(options)
            module = source.make_ir(target, options, functions, backend.get_module_map(), context)
            stages: dict[str, Any] = {}
            backend.add_stages(stages, options, source.language)
            metadata = {"target": target, **options.__dict__}
            for stage in ("ttir", "ttgir", "llir", "ptx"):
                module = stages[stage](module, metadata)
            cubin = stages["cubin"](module, metadata) if self.assemble else None
            _COMPILED[key] = (metadata["num_warps"], metadata["shared"], str(module), cubin)
        return _COMPILED[key], arguments


_COMPILED: dict[Any, tuple[int, int, str, bytes | None]] = {}


def _arguments(
    bound: dict[str, Any], signature: dict[str, Any], constants: dict[Any, Any]
) -> Iterator[tuple[Any, str]]:
    """The values that the compiled kernel takes, tuples spread out, with their types."""

    def spread(value: Any, kind: Any, path: tuple[int, ...]) -> Iterator[tuple[Any, str]]:
        if isinstance(value, tuple):
            for i, (v, k) in enumerate(zip(value, kind, strict=True)):
                yield from spread(v, k, (*path, i))
        elif kind != "constexpr" and path not in constants:
            yield value, kind

    for i, (name, value) in enumerate(bound.items()):
        yield from spread(value, signature[name], (i,))


def _execute(launch: Launch, arguments: list[tuple[Any, str]]) -> None:
    """Run the PTX on a copy of the tensors' memory, of which nothing else may be touched."""
    places: dict[int, tuple[int, Any]] = {}
    end = 256
    for value, _ in arguments:
        if isinstance(value, Tensor) and (start := (memory := value.untyped_storage()).data_ptr()) not in places:
            places[start] = end, memory
            end = (end + memory.nbytes() + 511) // 256 * 256
    arena, allowed = np.zeros(end, np.uint8), np.zeros(end, bool)
    for at, memory in places.values():
        arena[at : at + memory.nbytes()] = _bytes(memory)
    values = []
    for value, kind in arguments:
        if isinstance(value, Tensor):
            at = places[value.untyped_storage().data_ptr()][0] + value.storage_offset() * value.element_size()
            values.append(ctypes.c_uint64(GBASE + at))
            ours = torch.from_numpy(allowed[at:]).as_strided(
                (*value.shape, value.element_size()), (*(s * value.element_size() for s in value.stride()), 1)
            )
            ours.fill_(True)
        else:
            values.append(ctypes.c_float(value) if kind == "fp32" else ctypes.c_int64(value))
    # The name of a setting that LLVM has already looked up, and that nothing reads.
    kernel = Kernel(re.sub(r"\.global .*_\$_str.*", "", launch.ptx), launch.name)
    values += [ctypes.c_uint64(0)] * (
        len(kernel.params) - len(values)
    )  # Triton's scratch memory, which it does not use
    kernel.prof = {}
    block = (32 * launch.warps, 1, 1)
    kernel.launch_host(launch.grid, block, [ctypes.addressof(v) for v in values], launch.shared, arena, allowed)
    launch.counters = kernel.counters
    for at, memory in places.values():
        _bytes(memory)[:] = arena[at : at + memory.nbytes()]


def _bytes(memory: Any) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * memory.nbytes()).from_address(memory.data_ptr()), np.uint8)


def facts(cubin: bytes) -> Facts:
    """What a cubin with one kernel says of itself."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        (found,) = read(file.name)
    return found
