"""Samplers: whole trajectories against diffusers' schedulers, order of convergence, and refused settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from pysora.sampling import PREDICTIONS, SAMPLERS, Plan, SamplerSettings, plan

# diffusers hands torch tensors to numpy in a way that numpy 2 deprecates; nothing of ours.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
REFERENCES: dict[str, Callable[[float], Any]] = {
    "euler": lambda shift: FlowMatchEulerDiscreteScheduler(shift=shift),
    "unipc": lambda shift: UniPCMultistepScheduler(flow_shift=shift, **FLOW),
    "dpm++": lambda shift: DPMSolverMultistepScheduler(flow_shift=shift, **FLOW),
}
SHAPE = (2, 3, 2, 5, 7)


def velocity(x: Tensor, timestep: Tensor) -> Tensor:
    """A smooth nonlinear model whose answer depends on the sample, the place and the timestep."""
    place = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).view(x.shape[1:])
    level = timestep.to(x.dtype) / 1000
    return x - torch.tanh(2 * x + place) * (1.5 - level) + 0.3 * torch.sin(3 * place + 2 * level)


def run(p: Plan, x: Tensor, model: Callable[[Tensor, Tensor], Tensor] = velocity) -> list[Tensor]:
    history: list[Tensor] = []
    trajectory = []
    for i, timestep in enumerate(p.timesteps):
        x, history = p.advance(i, x, model(x, timestep), history)
        trajectory.append(x)
    return trajectory


def reference(scheduler: Any, steps: int, x: Tensor) -> list[Tensor]:
    scheduler.set_timesteps(steps)
    # As pipelines do: near 1000 steps the truncated timesteps repeat, and looking the first one up finds the second.
    scheduler.set_begin_index(0)
    trajectory = []
    for timestep in scheduler.timesteps:
        x = scheduler.step(velocity(x, timestep), timestep, x, return_dict=False)[0]
        trajectory.append(x)
    return trajectory


@pytest.fixture
def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("steps", "shift"),
    [(1, 3.0), (2, 3.0), (3, 1.0), (4, 5.0), (7, 0.5), (20, 3.0), (50, 5.0), (200, 1.0), (200, 5.0), (1000, 3.0)],
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_trajectory(name: str, steps: int, shift: float, start: Tensor) -> None:
    scheduler = REFERENCES[name](shift)
    want, got = reference(scheduler, steps, start), run(plan(name, steps, shift), start)
    assert len(got) == len(want) == steps
    limit = 1e-5 if steps <= 200 else 1e-4
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a - b).abs().max() <= limit * b.abs().max(), f"step {i}"


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_trajectory_of_a_model_that_predicts_clean_latents(name: str, start: Tensor) -> None:
    """As a velocity (x - x0) / sigma it takes the way of the reference that is told of `sample` predictions."""
    settings = SamplerSettings(name, 3.0, "clean")
    schedulers = {"unipc": UniPCMultistepScheduler, "dpm++": DPMSolverMultistepScheduler}
    scheduler = schedulers[name].from_config(settings.to_dict())
    scheduler.set_timesteps(20)
    p, x, want, history = plan(name, 20, 3.0), start, start, []
    for i, timestep in enumerate(p.timesteps):
        want = scheduler.step(velocity(want, timestep), timestep, want, return_dict=False)[0]
        x, history = p.advance(i, x, (x - velocity(x, timestep)) / p.sigmas[i], history)
        assert (x - want).abs().max() <= 1e-5 * want.abs().max(), f"step {i}"


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_settings_come_back(name: str, predicts: str) -> None:
    if name == "euler" and predicts == "clean":
        with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler knows velocities alone, not 'clean'"):
            SamplerSettings(name, 3.0, predicts)
        return
    settings = SamplerSettings(name, 3.0, predicts)
    assert SamplerSettings.from_dict(settings.to_dict()) == settings


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="predicts must be one of velocity, clean, got 'noise'"):
        SamplerSettings("unipc", 3.0, "noise")


@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (2, 12.0), (15, 3.0), (30, 0.3), (999, 1.0), (1000, 5.0)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_levels_and_timesteps_are_the_reference(name: str, steps: int, shift: float) -> None:
    scheduler, p = REFERENCES[name](shift), plan(name, steps, shift)
    scheduler.set_timesteps(steps)
    assert torch.equal(p.sigmas, scheduler.sigmas)
    assert torch.equal(p.timesteps, scheduler.timesteps.float())
    assert p.timesteps.dtype == p.sigmas.dtype == torch.float32
    assert (p.sigmas.diff() < 0).all() and p.sigmas[-1] == 0
    assert len(p) == steps


@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance(name: str, start: Tensor) -> None:
    """A step with guidance is the step with the guided prediction."""
    p, x, history = plan(name, 4, 3.0), start, []
    for i, timestep in enumerate(p.timesteps):
        cond, uncond = velocity(x, timestep), velocity(0.5 * x, timestep)
        want, _ = p.advance(i, x, uncond + 4.0 * (cond - uncond), history)
        x, history = p.advance(i, x, cond, history, prediction_uncond=uncond, guidance=4.0)
        assert torch.equal(x, want)


@pytest.mark.parametrize("name", SAMPLERS)
def test_constant_velocity_is_followed_exactly(name: str, start: Tensor) -> None:
    """Straight paths, what flow matching aims at, end at x0 whatever the steps."""
    clean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for steps in (1, 2, 5, 33):
        p = plan(name, steps, 2.0)
        sigma = p.sigmas[0].double()
        x = (1 - sigma) * clean + sigma * start
        got = run(p, x, lambda _x, _t: start - clean)[-1]
        torch.testing.assert_close(got, clean, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpm++", 2), ("unipc", 3)])
def test_order_of_convergence(name: str, order: int) -> None:
    """Halving the step divides the error of x' = v(x, sigma) by 2^order; UniPC's corrector adds an order."""

    def error(steps: int) -> float:
        # Levels uniform in lambda, and the closing level 0, which is never stepped to.
        sigmas = [*torch.sigmoid(torch.linspace(2, -2, steps + 1, dtype=torch.float64)).tolist(), 0.0]
        levels = torch.tensor(sigmas, dtype=torch.float64)
        p = Plan(name, levels[:-1], levels, tuple(SAMPLERS[name].step(sigmas, i) for i in range(steps + 1)))
        # x = exp(sin(3 sigma)) solves x' = 3 cos(3 sigma) x.
        x, history = torch.exp(torch.sin(3 * levels[:1])), []
        for i in range(steps):
            x, history = p.advance(i, x, 3 * torch.cos(3 * levels[i]) * x, history)
        return abs(float(x - torch.exp(torch.sin(3 * levels[steps]))))

    assert error(40) > 0.75 * 2**order * error(80)


def test_history_is_small(start: Tensor) -> None:
    kept = {"euler": 0, "dpm++": 1, "unipc": 3}
    for name in SAMPLERS:
        p, history = plan(name, 6, 3.0), []
        for i in range(5):
            _, history = p.advance(i, start, start, history)
        assert len(history) == kept[name]
        assert p.advance(5, start, start, history)[1] == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("ddim", 10, 1.0), "sampler must be one of euler, unipc, dpm"),
        (("euler", 0, 1.0), "steps must be an integer from 1 to 1000, got 0"),
        (("euler", 1001, 1.0), "steps"),
        (("euler", True, 1.0), "steps"),
        (("euler", 2.0, 1.0), "steps"),
        (("unipc", 10, 0.0), "shift must lie between"),
        (("unipc", 10, -3.0), "shift"),
        (("unipc", 10, float("nan")), "shift"),
    ],
)
def test_refused_plans(arguments: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        plan(*arguments)


@pytest.mark.parametrize("name", SAMPLERS)
def test_settings_of_diffusers(name: str) -> None:
    config = dict(REFERENCES[name](3.0).config)
    assert SamplerSettings.from_dict({**config, "_class_name": SAMPLERS[name].scheduler}) == SamplerSettings(name, 3.0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_saved_settings_are_read_by_us_and_by_diffusers(name: str) -> None:
    values = SamplerSettings(name, 2.5).to_dict()
    assert SamplerSettings.from_dict(values) == SamplerSettings(name, 2.5)
    theirs = type(REFERENCES[name](1.0)).from_config(values)
    theirs.set_timesteps(9)
    assert torch.equal(theirs.sigmas, plan(name, 9, 2.5).sigmas)


@pytest.mark.parametrize(
    ("name", "changes", "reasons"),
    [
        ("unipc", {"solver_order": 3}, ["solver_order must be 2, got 3"]),
        (
            "unipc",
            {"solver_type": "bh1", "thresholding": True},
            ["solver_type must be 'bh2', got 'bh1'", "thresholding"],
        ),
        ("unipc", {"prediction_type": "epsilon"}, ["prediction_type must be 'flow_prediction' or 'sample'"]),
        ("dpm++", {"prediction_type": "v_prediction"}, ["prediction_type must be 'flow_prediction' or 'sample'"]),
        ("unipc", {"use_flow_sigmas": False}, ["use_flow_sigmas"]),
        ("unipc", {"disable_corrector": [0]}, ["disable_corrector"]),
        ("unipc", {"lower_order_final": False}, ["lower_order_final"]),
        ("unipc", {"use_karras_sigmas": True}, ["use_karras_sigmas"]),
        ("unipc", {"flow_shift": "3"}, ["flow_shift must be a number"]),
        ("dpm++", {"algorithm_type": "sde-dpmsolver++"}, ["algorithm_type must be 'dpmsolver"]),
        ("dpm++", {"final_sigmas_type": "sigma_min"}, ["final_sigmas_type"]),
        ("dpm++", {"solver_type": "heun"}, ["solver_type"]),
        ("euler", {"use_dynamic_shifting": True}, ["use_dynamic_shifting"]),
        ("euler", {"invert_sigmas": True}, ["invert_sigmas"]),
        (
            "euler",
            {"_class_name": "DDIMScheduler"},
            ["must be one of FlowMatchEulerDiscreteScheduler", "DDIMScheduler"],
        ),
        ("euler", {"_class_name": None}, ["must be one of"]),
    ],
)
def test_refused_settings(name: str, changes: dict[str, Any], reasons: list[str]) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        SamplerSettings.from_dict({**SamplerSettings(name, 3.0).to_dict(), **changes})
    for reason in reasons:
        assert reason in str(caught.value)


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
def test_missing_settings_have_diffusers_defaults(name: str) -> None:
    """Without prediction_type the reference would read an epsilon model: refused, not guessed."""
    values = SamplerSettings(name, 3.0).to_dict()
    del values["prediction_type"]
    with pytest.raises(ValueError, match="prediction_type must be 'flow_prediction' or 'sample', got 'epsilon'"):
        SamplerSettings.from_dict(values)
