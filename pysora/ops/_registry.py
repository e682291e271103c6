"""One `Op` per kernel: a reference everybody can read, and faster implementations that are tried in order."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")

LIBRARY = torch.library.Library("pysora", "DEF")
BACKENDS = ("cuda", "triton", "cpu", "reference")
OPS: dict[str, Op[Any]] = {}

# The environment's choice holds for the ops that have such a backend; a caller's `backend=` holds without exception.
FORCED: str | None = os.environ.get("PYSORA_BACKEND") or None


@dataclass(frozen=True)
class Impl:
    """One implementation of an op.

    Args:
        backend: one of `BACKENDS`.
        run: takes every parameter of the reference, in order, and returns what the reference returns.
        unsupported: the reason why it cannot take these arguments, or None. Takes what `run` takes.
        unavailable: the reason why it cannot run on this machine at all, or None.
        recorded: the same where autograd has to record the call; None for native code without gradients of its own,
            where they go to the reference.
    """

    backend: str
    run: Callable[..., Any]
    unsupported: Callable[..., str | None]
    unavailable: Callable[[], str | None]
    recorded: Callable[..., Any] | None = None

    def refuses(self, args: Sequence[Any]) -> str | None:
        """Return why this implementation cannot run with `args`, or None."""
        if reason := self.unavailable():
            return reason
        if self.recorded is not self.run and needs_gradient(args):
            if self.recorded is None:
                return "needs a gradient"
            if torch._C._are_functorch_transforms_active():
                return "its gradients are for autograd, not for torch.func"
        return self.unsupported(*args)

    def __call__(self, args: Sequence[Any]) -> Any:
        """Run with `args`, recorded where that is needed."""
        if self.recorded is not None and needs_gradient(args):
            return self.recorded(*args)
        return self.run(*args)


@dataclass(frozen=True)
class Explanation:
    """Which backend an op takes, and the reason for each one that it does not take."""

    op: str
    backend: str
    reasons: dict[str, str]

    def __str__(self) -> str:
        return "\n".join([f"{self.op}: {self.backend}", *(f"  not {b}: {why}" for b, why in self.reasons.items())])


def needs_gradient(args: Sequence[Any]) -> bool:
    """Return whether autograd has to record a call with `args` (tensors, or lists of them)."""
    if not torch.is_grad_enabled():
        return False
    tensors = [t for a in args for t in (a if isinstance(a, (list, tuple)) else (a,))]
    return any(isinstance(t, Tensor) and t.requires_grad for t in tensors)


def _always(*_: Any) -> None:
    return None


class Op(Generic[R]):
    """An operation: call it as its reference, plus `backend=` to name the implementation.

    A backend that the caller names never falls back: `NotImplementedError` says why it cannot run. Without a name the
    registered implementations are tried in order and the reference comes last; `ops.explain` tells which one and why.
    """

    def __init__(self, reference: Callable[..., R], pack: Callable[[R], Any], unpack: Callable[..., R]) -> None:
        parameters = inspect.signature(reference).parameters
        self.name = self.__name__ = reference.__name__
        self.__doc__ = reference.__doc__
        self.__wrapped__ = self.reference = reference
        self.names = tuple(parameters)
        self.defaults = {n: p.default for n, p in parameters.items() if p.default is not inspect.Parameter.empty}
        self.impls: list[Impl] = []
        self.fallback = Impl("reference", reference, _always, _always, reference)
        self.pack, self.unpack = pack, unpack
        self.torch_op: Any = None

    def __repr__(self) -> str:
        return f"<op {self.name}: {', '.join([i.backend for i in self.impls] + ['reference'])}>"

    def register(
        self,
        backend: str,
        run: Callable[..., R],
        unsupported: Callable[..., str | None] = _always,
        unavailable: Callable[[], str | None] = _always,
        recorded: Callable[..., R] | None = None,
    ) -> None:
        """Add an implementation after those already registered."""
        if backend not in BACKENDS[:-1] or any(i.backend == backend for i in self.impls):
            raise ValueError(f"backend: need one of {BACKENDS[:-1]}, each once for {self.name}, got {backend!r}")
        self.impls.append(Impl(backend, run, unsupported, unavailable, recorded))

    def bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return one value per parameter of the reference, defaults filled in. TypeError as a plain call would."""
        if len(args) > len(self.names):
            raise TypeError(f"{self.name}() takes {len(self.names)} arguments, got {len(args)}")
        rest, values = self.names[len(args) :], list(args)
        for name in kwargs:
            if name not in rest:
                problem = "got two values for" if name in self.names else "has no"
                raise TypeError(f"{self.name}() {problem} argument {name!r}")
        for name in rest:
            if name not in kwargs and name not in self.defaults:
                raise TypeError(f"{self.name}() needs argument {name!r}")
            values.append(kwargs[name] if name in kwargs else self.defaults[name])
        return tuple(values)

    def candidates(self, backend: str | None) -> list[Impl]:
        """Return the implementations to try, in order. `backend` is the caller's choice, or None."""
        if backend is None and FORCED is not None:
            _known(FORCED, "PYSORA_BACKEND")
            chosen = [i for i in (*self.impls, self.fallback) if i.backend == FORCED]
            return chosen or [*self.impls, self.fallback]
        if backend is not None:
            _known(backend, "backend")
            return [i for i in (*self.impls, self.fallback) if i.backend == backend]
        return [*self.impls, self.fallback]

    def select(self, args: Sequence[Any], backend: str | None = None) -> Impl:
        """Return the implementation that runs with the bound `args`.

        Raises:
            NotImplementedError: a named backend cannot run; the message has its reason.
            ValueError: there is no backend of that name.
        """
        candidates = self.candidates(backend)
        for impl in candidates:
            if impl.refuses(args) is None:
                return impl
        reasons = "; ".join(f"{i.backend}: {i.refuses(args)}" for i in candidates) or f"{backend}: no such kernel"
        raise NotImplementedError(f"{self.name}: {reasons}")

    def __call__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> R:
        values = self.bind(args, kwargs)
        if torch.compiler.is_compiling():
            return self.unpack(self.torch_op(*values, backend=backend), *values)
        result: R = self.select(values, backend)(values)
        return result

    def explain(self, args: Sequence[Any] | None) -> Explanation:
        """Return which backend runs with the bound `args`; None asks for this machine alone, whatever the arguments."""
        allowed = self.candidates(None)
        present = {i.backend: i for i in (*self.impls, self.fallback)}
        reasons: dict[str, str] = {}
        chosen = "none"
        for backend in BACKENDS:
            impl = present.get(backend)
            if impl is None:
                reasons[backend] = "no kernel for this op"
            elif impl not in allowed:
                reasons[backend] = f"PYSORA_BACKEND is {FORCED}"
            elif why := (impl.unavailable() if args is None else impl.refuses(args)):
                reasons[backend] = why
            elif chosen == "none":
                chosen = backend
            else:
                reasons[backend] = f"{chosen} comes first"
        return Explanation(self.name, chosen, reasons)


def _known(backend: str, source: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"{source}: need one of {', '.join(BACKENDS)}, got {backend!r}")


def op(
    schema: str,
    fake: Callable[..., Any],
    pack: Callable[[Any], Any] = lambda result: result,
    unpack: Callable[..., Any] = lambda packed, *_: packed,
) -> Callable[[Callable[..., R]], Op[R]]:
    """Declare an op from its plain-torch reference.

    Args:
        schema: the parameters of the reference and the results, in torch's schema language, without a name.
        fake: takes the parameters, returns outputs of the right shape and dtype for torch.compile (packed).
        pack, unpack: between the reference's result and the schema's, where a parameter decides the form of the result.
            `unpack` also takes the parameters.
    """

    def wrap(reference: Callable[..., R]) -> Op[R]:
        made = Op[R](reference, pack, unpack)
        _declare(made, schema, fake)
        OPS[made.name] = made
        return made

    return wrap


def _declare(made: Op[Any], schema: str, fake: Callable[..., Any]) -> None:
    """Give torch the op `pysora::<name>`, so that torch.compile keeps it as one node of the graph."""
    parameters, results = schema.rsplit(") ->", 1)
    LIBRARY.define(f"{made.name}{parameters}, *, str? backend=None) ->{results}")

    def run(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        values = made.bind(args, kwargs)
        return made.pack(made.select(values, backend)(values))

    def autograd(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        values = made.bind(args, kwargs)
        if needs_gradient(values):
            return run(*values, backend=backend)
        with torch._C._AutoDispatchBelowAutograd():
            return made.torch_op(*values, backend=backend)

    has_tensors = "Tensor" in parameters
    LIBRARY.impl(made.name, run, "CompositeExplicitAutograd" if has_tensors else "BackendSelect")
    if has_tensors:
        LIBRARY.impl(made.name, autograd, "Autograd")

    def fake_of(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        return fake(*made.bind(args, kwargs))

    torch.library.register_fake(f"pysora::{made.name}", fake_of, lib=LIBRARY)
    made.torch_op = getattr(torch.ops.pysora, made.name).default


def explain(name: str, *args: Any, **kwargs: Any) -> Explanation:
    """Return which backend the op `name` takes for these arguments, and why not the others.

    Without arguments the answer is about this machine alone.

    Raises:
        ValueError: there is no op of that name.
    """
    if name not in OPS:
        raise ValueError(f"name: need one of {', '.join(OPS)}, got {name!r}")
    made = OPS[name]
    return made.explain(made.bind(args, kwargs) if args or kwargs else None)
