"""What a run may leave out: the knobs do what they say, and the account is right."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny_wan
import torch
from allocations import PeakBytes
from closed_flow import SHAPE, Flow, ask, run, text
from torch import Tensor
from typer.testing import CliRunner

import pysora
from pysora import approximation, prediction
from pysora.approximation import EXACT, FAST, PRESETS, Approximation, preset
from pysora.cli import app
from pysora.models.dit import TextContext
from pysora.models.projection import Attend, Int8Attend, Int8Projection, Projection, in_int8, int8_bytes
from pysora.ops import _cpu
from pysora.prediction import Predictor, guided_steps, reuse_bytes
from pysora.sampling import plan

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_model_of_clean_latents_is_one_of_velocities() -> None:
    """The same flow, told as x0 = x - sigma v: the same videos and the same accounts, reuse included."""
    start = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5))
    request = ask(2, max_error=0.2)
    schedule = plan(request.sampler, request.steps, request.shift)
    guided = guided_steps(schedule, request)
    sigmas = dict(zip(schedule.timesteps.tolist(), schedule.sigmas.tolist(), strict=False))

    class Clean(Flow):
        def __call__(self, x: Tensor, timestep: Tensor, context: TextContext) -> Tensor:
            return x - sigmas[float(timestep[0])] * super().__call__(x, timestep, context)

    ends = []
    for model, predicts in ((Flow(), "velocity"), (Clean(), "clean")):
        texts = text(1.0, -2.0), text(0.0, 0.0)
        predict = Predictor(model, schedule, request, guided, *texts, per_token=False, predicts=predicts)
        x, history = start, []
        for i in range(len(schedule)):
            velocity, unguided = predict(i, x)
            x, history = schedule.advance(i, x, velocity, history, prediction_uncond=unguided, guidance=3.0)
        ends.append((x, [account.steps_reused for account in predict.accounts(x)]))
    torch.testing.assert_close(ends[0][0], ends[1][0], rtol=0, atol=1e-4)
    assert ends[0][1] == ends[1][1] != [0, 0]


def test_presets_are_tables_of_every_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximation, "has_matrix_unit", lambda: False)
    assert Approximation() == EXACT == PRESETS["exact"]
    assert FAST == PRESETS["fast"] != EXACT
    assert ask().approximation == ask(preset="exact").approximation == EXACT
    assert ask(preset="fast").approximation == FAST
    assert ask(preset="fast", max_error=0.03).approximation == replace(FAST, max_error=0.03)
    assert ask(int8=True).approximation == replace(EXACT, int8=True)
    with pytest.raises(TypeError, match="int8 must be True or False, got 1"):
        ask(int8=1)
    assert ask(guidance_interval=[0, 0.5]).approximation == replace(EXACT, guidance_interval=(0.0, 0.5))
    knobs = {"max_error": 0.0, "guidance_interval": (0.0, 1.0), "int8": False}
    assert knobs.keys() == {knob.name for knob in fields(Approximation)}
    assert ask(preset="fast", **knobs).approximation == EXACT


@pytest.mark.parametrize("unit", [False, True])
def test_the_fast_preset_rounds_on_cpus_without_a_matrix_unit_alone(
    monkeypatch: pytest.MonkeyPatch, unit: bool
) -> None:
    monkeypatch.setattr(approximation, "has_matrix_unit", lambda: unit)
    assert preset("fast", "cpu") == replace(FAST, int8=not unit)
    assert preset("fast", "cuda") == replace(FAST, int8=False)


def test_exact_is_the_transformer_at_every_step() -> None:
    model, start = Flow(), torch.randn(2, *SHAPE)
    _, accounts = run(model, (1.0, -0.5), start, steps=6, guidance=3.0)
    sigmas = plan("euler", 6, 3.0).timesteps.tolist()
    assert model.calls == [(sigma, 2, negative) for sigma in sigmas for negative in (False, True)]
    for account in accounts:
        assert account.to_dict(EXACT) == {
            "max_error": 0.0,
            "guidance_interval": [0.0, 1.0],
            "int8": False,
            "steps_computed": 6,
            "steps_reused": 0,
            "guidance_skipped": 0,
            "calls": 12,
            "calls_exact": 12,
            "estimated_error": 0.0,
        }


@pytest.mark.parametrize("guidance", [1.0, 3.0], ids=["unguided", "guided"])
@pytest.mark.parametrize(("steps", "computed"), [(1, 1), (2, 2), (3, 3), (5, 3), (12, 4), (20, 5)])
def test_the_first_steps_and_the_last_are_computed(steps: int, computed: int, guidance: float) -> None:
    """The first fifth, and at least two."""
    model = Flow()
    # A flow whose output changes little, so that the bound of 1 never stops reuse.
    _, (account,) = run(model, (0.1,), torch.randn(1, *SHAPE), steps=steps, guidance=guidance, max_error=1.0)
    branches = 1 + (guidance > 1)
    assert (account.steps_computed, account.steps_reused) == (computed, steps - computed)
    assert (account.calls, account.calls_exact) == (branches * computed, branches * steps)
    timesteps = plan("euler", steps, 3.0).timesteps.tolist()
    expected = dict.fromkeys([*timesteps[: max(1, computed - 1)], timesteps[-1]])
    assert list(dict.fromkeys(timestep for timestep, _, _ in model.calls)) == list(expected)
    assert len(model.calls) == account.calls


def test_reuse_keeps_output_minus_input_of_both_branches() -> None:
    request = ask(steps=5, guidance=3.0, max_error=1.0)
    schedule = plan("euler", 5, 3.0)
    model = Flow()
    predict = Predictor(
        model, schedule, request, guided_steps(schedule, request), text(1.0), text(0.0), per_token=False
    )
    samples = [torch.randn(1, *SHAPE)]
    samples += [samples[0] + 0.01 * n for n in (1, 2)]
    predict(0, samples[0])
    velocity, unguided = predict(1, samples[1])
    assert unguided is not None
    reused, reused_unguided = predict(2, samples[2])
    assert len(model.calls) == 4
    assert reused_unguided is not None
    torch.testing.assert_close(reused - samples[2], velocity - samples[1])
    torch.testing.assert_close(reused_unguided - samples[2], unguided - samples[1])


def test_reuse_keeps_the_bound() -> None:
    """Where the rate of change is steady, up to a factor of 2 between computed steps, so is the bound."""
    start, allowed = torch.randn(1, *SHAPE), 0.06
    request = ask(steps=40, guidance=1.0, max_error=allowed)
    schedule = plan("euler", 40, 3.0)
    model, changes = Flow(1.0), []
    predict = Predictor(model, schedule, request, guided_steps(schedule, request), text(3.0), None, per_token=False)
    x, kept = start, start
    for i in range(40):
        before = len(model.calls)
        velocity, _ = predict(i, x)
        if len(model.calls) > before:
            kept = velocity
        else:
            true = Flow(1.0)(x, schedule.timesteps[i : i + 1], text(3.0))
            changes.append(float((true - kept).norm() / kept.norm()))
        x, _ = schedule.advance(i, x, velocity)
    assert len(changes) >= 15
    assert max(changes) <= 2 * allowed
    assert max(changes) >= 0.5 * allowed


def test_a_larger_bound_reuses_more_for_a_larger_error() -> None:
    start = torch.randn(1, *SHAPE)
    exact, _ = run(Flow(1.0), (3.0,), start, steps=30)
    made = [run(Flow(1.0), (3.0,), start, steps=30, max_error=bound) for bound in (0.0, 0.12, 0.25)]
    reused = [account.steps_reused for _, (account,) in made]
    errors = [float((latents - exact).norm()) for latents, _ in made]
    estimates = [account.estimated_error for _, (account,) in made]
    assert reused == sorted(set(reused))
    assert errors == sorted(set(errors))
    assert estimates == sorted(set(estimates))


def test_guidance_on_an_interval() -> None:
    model = Flow()
    _, (account,) = run(model, (1.0,), torch.randn(1, *SHAPE), steps=10, guidance=3.0, guidance_interval=(0.3, 0.9))
    timesteps = plan("euler", 10, 3.0).timesteps.tolist()
    inside = [t for t in timesteps if 300 <= t <= 900]
    assert 0 < len(inside) < 10
    assert [t for t, _, negative in model.calls if negative] == inside
    assert [t for t, _, negative in model.calls if not negative] == timesteps
    assert (account.steps_computed, account.guidance_skipped) == (10, 10 - len(inside))
    assert (account.calls, account.calls_exact) == (10 + len(inside), 20)


def test_where_guidance_begins_it_is_computed() -> None:
    """The steps before keep nothing for the negative prompt that could be reused."""
    model = Flow()
    run(
        model,
        (0.1,),
        torch.randn(1, *SHAPE),
        steps=12,
        guidance=3.0,
        max_error=1.0,
        guidance_interval=(0.0, 0.8),
    )
    first = next(t for t in plan("euler", 12, 3.0).timesteps.tolist() if t <= 800)
    assert (first, 1, True) in model.calls


def test_an_interval_between_the_steps_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"must hold one of the 2 steps' noise levels \(0.0\d+ to 1\), got \(0.4, 0.5\)"
    ):
        guided_steps(plan("euler", 2, 3.0), ask(steps=2, guidance=2.0, guidance_interval=(0.4, 0.5)))
    unguided = ask(steps=2, guidance=1.0, guidance_interval=(0.4, 0.5))
    assert guided_steps(plan("euler", 2, 3.0), unguided) == (False, False)


def test_each_video_decides_for_itself() -> None:
    """A batch computes only the videos that need it, and gives each what it gets alone."""
    start, means = torch.randn(3, *SHAPE), (0.0, 3.0, -0.4)
    options: dict[str, Any] = {"steps": 20, "guidance": 2.0, "max_error": 0.1, "guidance_interval": (0.2, 1.0)}
    model = Flow()
    together, accounts = run(model, means, start, **options)
    assert {count for _, count, _ in model.calls} > {3}
    assert len({account.steps_reused for account in accounts}) > 1
    for b, mean in enumerate(means):
        alone, (account,) = run(Flow(), (mean,), start[b : b + 1], **options)
        assert torch.equal(alone[0], together[b])
        assert account == accounts[b]


def test_the_file_carries_the_account(tmp_path: Path) -> None:
    from PIL import Image

    pipeline = pysora.load(tiny_wan.saved("wan2.1", tmp_path))
    video = pipeline.generate("a", size="32x32", frames=1, steps=8, guidance=2.0, max_error=0.4, seed=1)
    assert isinstance(video, pysora.Video)
    image = Image.open(video.save(tmp_path / "image.png"))
    image.load()
    kept = json.loads(image.info["comment"])["approximation"]
    assert kept == video.meta["approximation"]
    assert kept["steps_reused"] > 0
    assert kept["steps_computed"] + kept["steps_reused"] == 8


def test_the_command_line_says_what_was_left_out(tmp_path: Path) -> None:
    folder, image = tiny_wan.saved("wan2.1", tmp_path), tmp_path / "image.png"
    form = ["--model", str(folder), "--size", "32x32", "--frames", "1", "--steps", "8", "--seed", "1", "-o", str(image)]

    def said(*options: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["generate", "a", "--guidance", "2", *form, *options])
        assert result.exit_code == code, result.output
        return " ".join(result.stderr.split())

    assert "left out" not in said()
    assert "left out: 0 of 8 steps, guidance in 4 of the others, 25% of the" in said("--guidance-interval", "0.8", "1")
    reused = said("--preset", "fast", "--max-error", "0.4")
    assert re.search(r"left out: [1-5] of 8 steps, .*% of the transformer's calls; estimated error \d+\.\d%", reused)
    assert re.search(r"products in 8 bits; left out: 0 of 8 steps, .*estimated error \d", said("--int8"))
    assert "preset must be one of exact, fast" in said("--preset", "slow", code=2)


def test_eight_bits_are_a_copy_beside_the_model(tmp_path: Path) -> None:
    """Projections of the blocks alone; the other tensors are the model's own, and the model stays as it was."""
    pipeline = pysora.load(tiny_wan.saved("wan2.1", tmp_path))
    dit, rounded = pipeline.dit, in_int8(pipeline.dit)
    kinds = {name: type(part) for name, part in rounded.named_modules()}
    replaced = {name for name, kind in kinds.items() if kind is Int8Projection}
    assert replaced == {name for name, part in dit.named_modules() if isinstance(part, Projection)}
    assert len(replaced) == 10 * dit.config.num_layers
    ours = {id(p) for p in dit.parameters()}
    assert {id(p) for p in rounded.parameters()} < ours and not any(
        isinstance(p, Int8Projection) for p in dit.modules()
    )
    fresh = [b for name in replaced for b in (rounded.get_submodule(name).weight, rounded.get_submodule(name).scale)]
    assert sum(b.nbytes for b in fresh if isinstance(b, Tensor)) == int8_bytes(dit)
    options: dict[str, Any] = {"size": "32x32", "frames": 1, "steps": 4, "seed": 1}
    before, eight, after = (pipeline.generate("a", **options, int8=flag) for flag in (False, True, False))
    assert isinstance(before, pysora.Video) and isinstance(eight, pysora.Video) and isinstance(after, pysora.Video)
    assert before.latents is not None and after.latents is not None and eight.latents is not None
    assert torch.equal(before.latents, after.latents) and not torch.equal(before.latents, eight.latents)
    assert eight.meta["approximation"]["int8"] and not before.meta["approximation"]["int8"]


@pytest.mark.parametrize("family", ["wan2.1", "wan2.2"])
@pytest.mark.parametrize("options", [{}, {"max_error": 0.3}, {"guidance_interval": (0.3, 0.95)}])
def test_prompt_and_negative_prompt_in_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, options: dict[str, Any]
) -> None:
    """With few tokens; prompts of different lengths hide what only one of them has."""
    pipeline = pysora.load(tiny_wan.saved(family, tmp_path))
    batches: list[int] = []
    pipeline.dit.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))

    def latents() -> Tensor:
        batches.clear()
        videos = pipeline.generate(
            ["a long prompt of a good many words", "a"],
            size="32x32",
            frames=5,
            steps=6,
            seed=1,
            guidance=4.0,
            **options,
        )
        return torch.stack([v.latents for v in videos])

    together, calls = latents(), list(batches)
    monkeypatch.setattr(prediction, "PAIRED", 0)
    torch.testing.assert_close(together, latents(), rtol=1e-5, atol=1e-5)
    assert max(calls) == 4 and max(batches) == 2 and sum(calls) == sum(batches)


def test_scores_in_eight_bits_where_they_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(1, 40, 2, 16) for _ in range(3))
    exact, eight = Attend()(q, k, v), Int8Attend()
    assert torch.equal(eight(q, k, v), exact)
    monkeypatch.setattr(importlib.import_module("pysora.ops.spacetime_attention"), "FEWEST_KEYS", 40)
    near = eight(q, k, v)
    assert not torch.equal(near, exact) and (near - exact).norm() <= 0.03 * exact.norm()
    monkeypatch.setattr(_cpu, "matrix_unit", lambda dtype: True)
    assert torch.equal(eight(q, k, v), exact)
    half = [t.half() for t in (q, k, v)]  # no kernel takes it, and the reference would write all scores out
    assert torch.equal(eight(*half), Attend()(*half))


def test_half_precision_reuses_in_its_own_dtype(tmp_path: Path) -> None:
    pipeline = pysora.load(tiny_wan.saved("wan2.2", tmp_path), dtype="bf16")
    seen: list[Any] = []
    video = pipeline.generate(
        "a", size="32x32", frames=1, steps=8, max_error=0.6, seed=1, on_step=lambda i, n, x: seen.append(x.dtype)
    )
    assert isinstance(video, pysora.Video)
    assert video.meta["approximation"]["steps_reused"] > 0
    assert set(seen) == {torch.float32}


def test_what_reuse_keeps_is_counted(tmp_path: Path) -> None:
    pipeline = pysora.load(tiny_wan.saved("wan2.1", tmp_path))
    config, length = pipeline.dit.config, pipeline.text.text_length
    request = ask(3, steps=9, guidance=3.0, max_error=0.3, size="256x256", frames=9)
    schedule = plan("unipc", 9, 3.0)
    peaks = []
    for each in (request, replace(request, approximation=EXACT)):
        x = torch.randn(3, tiny_wan.Z, 3, 32, 32)
        embeds = torch.randn(3, length, config.text_dim)
        contexts = [pipeline.dit.encode_text(embeds, [length] * 3, length) for _ in range(2)]
        with torch.no_grad(), PeakBytes() as measured:
            predict = Predictor(
                pipeline.dit, schedule, each, guided_steps(schedule, each), contexts[0], contexts[1], per_token=False
            )
            history: list[Tensor] = []
            for i in range(9):
                velocity, unguided = predict(i, x)
                x, history = schedule.advance(i, x, velocity, history, prediction_uncond=unguided, guidance=3.0)
        peaks.append(measured.peak)
    assert predict.accounts(x)[0].steps_reused == 0
    assert reuse_bytes(config, replace(request, approximation=EXACT), 1, length, 4) == 0
    assert peaks[1] < peaks[0] <= peaks[1] + reuse_bytes(config, request, x[0].numel(), length, 4)
