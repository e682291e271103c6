"""A training run in segments: limited by the clock, resumable, with its losses written down."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pysora.training import workers
from pysora.training.muon import Muon


def optimizers(
    model: nn.Module, hidden: Callable[[str, Tensor], bool], muon_lr: float, adam_lr: float
) -> list[torch.optim.Optimizer]:
    """Muon for the parameters that `hidden(name, parameter)` picks, AdamW for the rest."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    chosen = [p for n, p in named if hidden(n, p)]
    rest = [p for n, p in named if not hidden(n, p)]
    adam = torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.99), weight_decay=0.0)
    return [Muon(chosen, lr=muon_lr), adam] if chosen else [adam]


class _Due:
    """An action that is due every so many seconds."""

    def __init__(self, seconds: float, action: Callable[[], None]) -> None:
        self.seconds, self.action, self.at = seconds, action, time.monotonic() + seconds

    def act_if_due(self) -> None:
        if time.monotonic() >= self.at:
            self.action()
            self.at = time.monotonic() + self.seconds


@dataclass
class Run:
    """One stage of training in `folder`: `state.safetensors`, `progress.json` and `losses.csv` live there.

    In a group of workers each has a run of its own: they take their steps together, and the leader writes the files.

    model: what is trained; its averaged weights are kept under the names of `model`.
    optimizers: their state is saved too, so that a later segment goes on where this one ended.
    minutes: the length of the whole stage, over all its segments; the learning rate falls in the last half of it.
    resume: take up the state that an earlier segment left in `folder`, where there is one.
    average: decay of the moving average of the weights.
    """

    folder: Path
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    minutes: float
    resume: bool = False
    average: float = 0.999
    warmup: int = 100
    floor: float = 0.02
    log_every: int = 25
    save_every_s: float = 300.0
    steps: int = 0
    elapsed: float = 0.0
    seen: int = 0
    averaged: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.averaged = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        path = self.folder / "state.safetensors"
        if self.resume and path.exists():
            self._take_up(path)

    @property
    def progress(self) -> float:
        """Share of the stage that is done, 0 to 1."""
        return min(1.0, self.elapsed / (60 * self.minutes))

    def _take_up(self, path: Path) -> None:
        """The state that an earlier segment left."""
        saved = load_file(path)
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(saved[f"model/{name}"])
                self.averaged[name].copy_(saved[f"average/{name}"])
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in saved.items():
                kind, *rest = key.split("/")
                if kind == f"optimizer{i}":
                    state.setdefault(int(rest[0]), {})[rest[1]] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        record = json.loads((self.folder / "progress.json").read_text())
        self.steps, self.elapsed, self.seen = record["steps"], record["elapsed_s"], record["seen"]

    def save(self) -> None:
        """Write the state; the old one is replaced only by a whole new one."""
        tensors = {f"model/{n}": p.detach().contiguous() for n, p in self.model.named_parameters()}
        tensors |= {f"average/{n}": t.contiguous() for n, t in self.averaged.items()}
        for i, optimizer in enumerate(self.optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer{i}/{index}/{k}": v.contiguous() for k, v in state.items()}
        path = self.folder / "state.safetensors"
        save_file(tensors, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
        record = {"steps": self.steps, "elapsed_s": round(self.elapsed, 1), "seen": self.seen}
        (self.folder / "progress.json").write_text(json.dumps(record))

    def train(
        self,
        step: Callable[[int], tuple[Tensor, dict[str, float], int]],
        every: Iterable[tuple[float, Callable[[], None]]] = (),
    ) -> None:
        """Go on until `minutes` are used up; an interrupt (Ctrl-C) saves the state and is passed on.

        step: given the number of the step, returns the loss, what else to write down, and how many clips it saw.
        every: (seconds, action) pairs: actions that look at the model, done in the pauses.
        """
        due = [_Due(seconds, action) for seconds, action in [*every, (self.save_every_s, self.save)]]
        # Noise of its own for each worker, and for each segment.
        torch.manual_seed(1000 * self.steps + workers.rank())
        totals: dict[str, list[float]] = {}
        if not self.steps and not workers.rank():
            (self.folder / "losses.csv").unlink(missing_ok=True)  # of a training before
        last = time.monotonic()
        try:
            while self.progress < 1:
                loss, numbers, count = step(self.steps)
                norm = self._update(loss)
                self.steps, self.seen = self.steps + 1, self.seen + workers.total(count)
                now = time.monotonic()
                self.elapsed, last = workers.leading(self.elapsed + now - last), now
                if workers.rank():
                    continue
                for name, value in {"loss": float(loss.detach()), "norm": norm, **numbers}.items():
                    totals.setdefault(name, []).append(value)
                if self.steps % self.log_every == 0:
                    self._log({name: sum(v) / len(v) for name, v in totals.items()})
                    totals = {}
                for each in due:
                    each.act_if_due()
        finally:
            if not workers.rank():
                self.save()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The averaged weights stand in the model while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, p in self.model.named_parameters():
            kept = p.detach().clone()
            p.copy_(self.averaged[name])
            self.averaged[name].copy_(kept)

    def _update(self, loss: Tensor) -> float:
        """One step of the optimisers and of the average; returns the norm of the gradient."""
        self._set_rates()
        loss.backward()
        workers.mean([p.grad for p in self.model.parameters() if p.grad is not None])
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        if not math.isfinite(norm):
            raise FloatingPointError(f"step {self.steps}: the gradient is not finite")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average()
        return norm

    def _set_rates(self) -> None:
        """Linear warm-up, then the full rate, then a line down to `floor`.

        A longer stage can go on from the middle of a shorter one: nothing learnt at a low rate is undone (Hu et al.
        2024, arXiv:2404.06395).
        """
        factor = max(self.floor, min(1.0, 2 * (1 - self.progress))) * min(1, (self.steps + 1) / self.warmup)
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.average, (1 + self.steps) / (10 + self.steps))
        names = list(self.averaged)
        parameters = dict(self.model.named_parameters())
        torch._foreach_lerp_([self.averaged[n] for n in names], [parameters[n].detach() for n in names], 1 - decay)

    def _log(self, means: dict[str, float]) -> None:
        path = self.folder / "losses.csv"
        row = {"step": self.steps, "seconds": round(self.elapsed), "seen": self.seen}
        fresh = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if fresh:
                writer.writerow(["step", "seconds", "seen", "name", "value"])
            for name, value in means.items():
                writer.writerow([*row.values(), name, f"{value:.5g}"])
        told = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
        print(f"step {self.steps}  {self.elapsed / 60:.1f}/{self.minutes:g} min  clips {self.seen}  {told}", flush=True)
