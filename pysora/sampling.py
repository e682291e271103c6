"""Samplers for flow models: each is a table of coefficients, computed once in float64.

A flow model predicts the velocity v of x = (1 - sigma) x0 + sigma noise, so x0 = x - sigma v; `pysora.prediction` makes
v of the output of a model that predicts x0. Every step of every sampler here is linear in the sample, the (guided)
prediction and what earlier steps kept; `ops.sampler_step` applies it. With alpha = 1 - sigma and
lambda = log(alpha / sigma), a step from sigma_s to sigma_t has h = lambda_t - lambda_s.
The noise levels are those of diffusers' schedulers, rounded to fp32 as there, so that trajectories agree.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pysora import ops

TRAIN_STEPS = 1000
Row = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a sampler.

    coefficients: float64 [R, 2 + h], a row per result over (sample, prediction, *history); row 0 is the next sample.
    carry: the next step's history, as indices into (*results, *history).
    """

    coefficients: Tensor
    carry: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run of one sampler.

    timesteps: fp32 [steps], what the model is called with, 0..1000.
    sigmas: fp32 [steps + 1], falling noise levels; the last is 0.
    """

    name: str
    timesteps: Tensor
    sigmas: Tensor
    steps: tuple[Step, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def advance(
        self,
        i: int,
        sample: Tensor,
        prediction: Tensor,
        history: Sequence[Tensor] = (),
        *,
        prediction_uncond: Tensor | None = None,
        guidance: float = 1.0,
    ) -> tuple[Tensor, list[Tensor]]:
        """Take step i.

        sample: fp32, the result of step i - 1. prediction, prediction_uncond: like it, any float dtype.
        history: what step i - 1 returned; empty before step 0.
        Returns (next sample fp32, history for step i + 1).
        """
        step = self.steps[i]
        results = ops.sampler_step(
            sample, prediction, prediction_uncond, list(history), step.coefficients, guidance=guidance
        )
        kept = [*results, *history]
        return results[0], [kept[j] for j in step.carry]


def plan(name: str, steps: int, shift: float = 1.0) -> Plan:
    """Lay out a run of `steps` model evaluations (1 to 1000); larger `shift` (0.01 to 100) spends them at more noise.

    Raises ValueError on an unknown sampler or a value out of range.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= TRAIN_STEPS:
        raise ValueError(f"steps must be an integer from 1 to {TRAIN_STEPS}, got {steps!r}")
    if not 0.01 <= shift <= 100:
        raise ValueError(f"shift must lie between 0.01 and 100, got {shift!r}")
    sampler = SAMPLERS[name]
    exact = sampler.sigmas(steps, float(shift))
    rounded = np.append(exact, 0.0).astype(np.float32)
    timesteps = np.trunc(exact * TRAIN_STEPS) if sampler.integer_timesteps else rounded[:-1] * np.float32(TRAIN_STEPS)
    sigmas = [float(s) for s in rounded]
    return Plan(
        name,
        torch.from_numpy(timesteps.astype(np.float32)),
        torch.from_numpy(rounded),
        tuple(sampler.step(sigmas, i) for i in range(steps)),
    )


def _shifted(x: np.ndarray, shift: float) -> np.ndarray:
    return shift * x / (1 + (shift - 1) * x)


def _euler_sigmas(steps: int, shift: float) -> np.ndarray:
    # The schedule's end is the smallest training level, itself shifted (in fp32) before the whole is shifted.
    smallest = _shifted(np.float32(1) / np.array(TRAIN_STEPS, np.float32), np.float32(shift))
    return _shifted(np.linspace(TRAIN_STEPS, float(smallest) * TRAIN_STEPS, steps) / TRAIN_STEPS, shift)


def _unipc_sigmas(steps: int, shift: float) -> np.ndarray:
    sigmas = _shifted(np.linspace(1, 1 / TRAIN_STEPS, steps + 1)[:-1], shift)
    # At sigma = 1 alpha is 0 and lambda infinite.
    sigmas[0] -= 1e-6
    return sigmas


def _dpm_sigmas(steps: int, shift: float) -> np.ndarray:
    return _shifted(1.0 - np.linspace(1, 1 / TRAIN_STEPS, steps + 1), shift)[:0:-1]


def _log_snr(sigma: float) -> float:
    return math.log(1 - sigma) - math.log(sigma) if sigma > 0 else math.inf


def _combine(*terms: tuple[float, Row]) -> Row:
    """Sum of weight * row."""
    total: Row = {}
    for weight, row in terms:
        for name, value in row.items():
            total[name] = total.get(name, 0.0) + weight * value
    return total


def _table(rows: Sequence[Row], columns: Sequence[str]) -> Tensor:
    return torch.tensor([[row.get(name, 0.0) for name in columns] for row in rows], dtype=torch.float64)


def _clean(sigma: float) -> Row:
    """x0 from the sample and the prediction."""
    return {"sample": 1.0, "prediction": -sigma}


def _euler_step(sigmas: Sequence[float], i: int) -> Step:
    """Euler's method: x + (sigma_t - sigma_s) v."""
    return Step(_table([{"sample": 1.0, "prediction": sigmas[i + 1] - sigmas[i]}], ("sample", "prediction")), ())


def _exponential_step(sigmas: Sequence[float], i: int, start: Row, clean: Row, before: Row | None) -> Row:
    """From sigma_i to sigma_i+1 with x0 extrapolated along lambda by half a step (held constant without `before`).

    start: the sample at sigma_i; clean: x0 there; before: x0 at sigma_i-1.
    DPM-Solver++(2M), midpoint form (arXiv 2211.01095, algorithm 2), and the predictor UniP-2 with B(h) = e^h - 1
    (arXiv 2302.04867) are this same formula.
    """
    sigma_s, sigma_t = sigmas[i], sigmas[i + 1]
    h = _log_snr(sigma_t) - _log_snr(sigma_s)
    gain = -(1 - sigma_t) * math.expm1(-h)
    terms = [(sigma_t / sigma_s, start), (gain, clean)]
    if before is not None:
        slope = 0.5 * h / (_log_snr(sigma_s) - _log_snr(sigmas[i - 1]))
        terms += [(gain * slope, clean), (-gain * slope, before)]
    return _combine(*terms)


def _second_order(i: int, steps: int) -> bool:
    """First order at the first step, which knows no earlier x0, and at the last, which ends at lambda = infinity."""
    return 0 < i < steps - 1


def _dpm_step(sigmas: Sequence[float], i: int) -> Step:
    steps = len(sigmas) - 1
    clean = _clean(sigmas[i])
    before = {"clean-1": 1.0} if _second_order(i, steps) else None
    columns = ("sample", "prediction", "clean-1")[: 3 if i else 2]
    rows = [_exponential_step(sigmas, i, {"sample": 1.0}, clean, before), clean]
    return Step(_table(rows, columns), (1,)) if i < steps - 1 else Step(_table(rows[:1], columns), ())


def _unipc_step(sigmas: Sequence[float], i: int) -> Step:
    """UniPC-2, B(h) = e^h - 1: correct the sample with the x0 just predicted, then predict from the corrected one."""
    steps = len(sigmas) - 1
    clean = _clean(sigmas[i])
    corrected = _unipc_corrector(sigmas, i, clean) if i else {"sample": 1.0}
    before = {"clean-1": 1.0} if _second_order(i, steps) else None
    columns = ("sample", "prediction", "corrected-1", "clean-1", "clean-2")[: (2, 4)[i] if i < 2 else 5]
    rows = [_exponential_step(sigmas, i, corrected, clean, before), corrected, clean]
    if i == steps - 1:
        return Step(_table(rows[:1], columns), ())
    # Results are 0..2 and the history begins at 3: corrected, x0, and the x0 before it.
    return Step(_table(rows, columns), (1, 2) if i == 0 else (1, 2, 4))


def _unipc_corrector(sigmas: Sequence[float], i: int, clean: Row) -> Row:
    """The sample at sigma_i again, from the corrected one at sigma_i-1 and x0 at both (UniC, arXiv 2302.04867)."""
    sigma_s, sigma_t = sigmas[i - 1], sigmas[i]
    h = _log_snr(sigma_t) - _log_snr(sigma_s)
    gain = -(1 - sigma_t) * math.expm1(-h)
    base = _combine((sigma_t / sigma_s, {"corrected-1": 1.0}), (gain, {"clean-1": 1.0}))
    difference = _combine((1.0, clean), (-1.0, {"clean-1": 1.0}))
    if i == 1:
        return _combine((1.0, base), (gain * 0.5, difference))
    ratio = (_log_snr(sigmas[i - 2]) - _log_snr(sigma_s)) / h
    earlier = {"clean-2": 1.0 / ratio, "clean-1": -1.0 / ratio}
    # The two weights solve [[1, 1], [ratio, 1]] w = b, with b from the phi functions of the exponential integrator.
    phi_1 = math.expm1(-h) / -h - 1
    b_1 = phi_1 / math.expm1(-h)
    b_2 = 2 * (phi_1 / -h - 0.5) / math.expm1(-h)
    w_earlier = (b_1 - b_2) / (1 - ratio)
    return _combine((1.0, base), (gain * w_earlier, earlier), (gain * (b_1 - w_earlier), difference))


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A family of plans.

    sigmas: (steps, shift) -> float64 noise levels, without the closing 0; step: (all sigmas, i) -> Step.
    scheduler: diffusers' class with the same trajectory; shift_key: its setting for the shift.
    required: the settings of that class that must have exactly these values; its own defaults are in `defaults`.
    predictions: whether the class has a `prediction_type`; without one it steps along velocities.
    """

    sigmas: Callable[[int, float], np.ndarray]
    step: Callable[[Sequence[float], int], Step]
    integer_timesteps: bool
    scheduler: str
    shift_key: str
    required: dict[str, Any]
    defaults: dict[str, Any]
    predictions: bool


_NO_OTHER_SIGMAS = {
    "num_train_timesteps": TRAIN_STEPS,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
}
_MULTISTEP = {
    "use_flow_sigmas": True,
    "solver_order": 2,
    "final_sigmas_type": "zero",
    "lower_order_final": True,
    "thresholding": False,
}
_MULTISTEP_DEFAULTS = {"use_flow_sigmas": False}
PREDICTIONS = {"velocity": "flow_prediction", "clean": "sample"}
"""What a transformer predicts, and how the multistep schedulers' `prediction_type` says it."""

SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(
        _euler_sigmas,
        _euler_step,
        False,
        "FlowMatchEulerDiscreteScheduler",
        "shift",
        {**_NO_OTHER_SIGMAS, "invert_sigmas": False, "stochastic_sampling": False, "shift_terminal": None},
        {},
        False,
    ),
    "unipc": Sampler(
        _unipc_sigmas,
        _unipc_step,
        True,
        "UniPCMultistepScheduler",
        "flow_shift",
        {
            **_NO_OTHER_SIGMAS,
            **_MULTISTEP,
            "solver_type": "bh2",
            "predict_x0": True,
            "disable_corrector": [],
            "solver_p": None,
            "shift_terminal": None,
        },
        _MULTISTEP_DEFAULTS,
        True,
    ),
    "dpm++": Sampler(
        _dpm_sigmas,
        _dpm_step,
        True,
        "DPMSolverMultistepScheduler",
        "flow_shift",
        {
            **_NO_OTHER_SIGMAS,
            **_MULTISTEP,
            "solver_type": "midpoint",
            "algorithm_type": "dpmsolver++",
            "use_lu_lambdas": False,
            "variance_type": None,
        },
        _MULTISTEP_DEFAULTS,
        True,
    ),
}


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """What a checkpoint's scheduler/scheduler_config.json says: the sampler, its shift, what the transformer predicts.

    predicts: "velocity", or "clean" for the clean latents. Raises ValueError where diffusers' class of that sampler has
    no way to say it.
    """

    name: str = "unipc"
    shift: float = 1.0
    predicts: str = "velocity"

    def __post_init__(self) -> None:
        if self.predicts not in PREDICTIONS:
            raise ValueError(f"predicts must be one of {', '.join(PREDICTIONS)}, got {self.predicts!r}")
        if self.predicts != "velocity" and not SAMPLERS[self.name].predictions:
            raise ValueError(f"{SAMPLERS[self.name].scheduler} knows velocities alone, not {self.predicts!r}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SamplerSettings:
        """Read a scheduler_config.json. ValueError, with every reason, where a setting is not supported."""
        scheduler = values.get("_class_name")
        name = next((name for name, sampler in SAMPLERS.items() if sampler.scheduler == scheduler), None)
        if name is None:
            known = ", ".join(sampler.scheduler for sampler in SAMPLERS.values())
            raise ValueError(f"the scheduler must be one of {known}, got {scheduler!r}")
        sampler = SAMPLERS[name]
        refused = []
        for key, needed in sampler.required.items():
            value = values.get(key, sampler.defaults.get(key, needed))
            if value != needed:
                refused.append(f"{key} must be {needed!r}, got {value!r}")
        shift = values.get(sampler.shift_key, 1.0)
        if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0.01 <= shift <= 100:
            refused.append(f"{sampler.shift_key} must be a number from 0.01 to 100, got {shift!r}")
        kind = values.get("prediction_type", "epsilon") if sampler.predictions else PREDICTIONS["velocity"]
        predicts = {theirs: ours for ours, theirs in PREDICTIONS.items()}.get(kind)
        if predicts is None:
            refused.append(f"prediction_type must be 'flow_prediction' or 'sample', got {kind!r}")
        if refused or predicts is None:
            raise ValueError(f"{scheduler}: {'; '.join(refused)}")
        return cls(name, float(shift), predicts)

    def to_dict(self) -> dict[str, Any]:
        """The scheduler_config.json that `from_dict` and diffusers read."""
        sampler = SAMPLERS[self.name]
        kind = {"prediction_type": PREDICTIONS[self.predicts]} if sampler.predictions else {}
        return {"_class_name": sampler.scheduler, **sampler.required, **kind, sampler.shift_key: self.shift}
