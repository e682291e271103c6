"""The denoising loop's predictions: the transformer's, or an earlier step's where that is allowed.

Reuse follows EasyCache (Zhou et al. 2025, arXiv 2507.02860), guidance on an interval of noise levels Kynkaanniemi et
al. 2024 (arXiv 2404.07724); docs/fast.md has the formulas. Each video decides for itself, so that it is the same alone
and in a batch.

Letters: B videos, C latent channels, T H W latent grid, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pysora.approximation import Account
from pysora.models.dit import DiT, DiTConfig, TextContext
from pysora.request import Request
from pysora.sampling import Plan

# EasyCache's first steps (10 of 50), which decide what the video shows: a small error there leads to another video.
FIRST = 0.2
# Stands for the length of a sample that did not move, or of a prediction that is zero.
TINY = 1e-30


# With so few tokens a call's fixed cost is a good part of it, and the prompt and the negative prompt share one.
PAIRED = 2048


def shares_calls(batch: int, grid: tuple[int, int, int]) -> bool:
    """Whether the predictions with and without the prompt come from one call; grid: tokens (t, h, w) of one video."""
    return 2 * batch * math.prod(grid) <= PAIRED


def guided_steps(schedule: Plan, request: Request) -> tuple[bool, ...]:
    """Whether each step has guidance. ValueError where guidance was asked for and its interval holds no step."""
    sigmas = schedule.sigmas[:-1].tolist()
    asked = request.guidance > 1.0
    guided = tuple(asked and request.approximation.guides(sigma) for sigma in sigmas)
    if asked and not any(guided):
        raise ValueError(
            f"guidance_interval must hold one of the {len(sigmas)} steps' noise levels ({sigmas[-1]:.3g} to "
            f"{sigmas[0]:.3g}), got {request.approximation.guidance_interval}; guidance=1 is none at all"
        )
    return guided


def reuse_bytes(config: DiTConfig, request: Request, latents: int, text_rows: int, itemsize: int) -> int:
    """Bytes that reusing predictions takes at most, beside what an exact run takes.

    latents: elements of one video's latents. text_rows: keys of the cross-attention. itemsize: of the model's dtype.
    """
    if not request.approximation.max_error:
        return 0
    # Kept: the sample and two predictions of a computed step, the last sample. Put together: the samples to compute,
    # two predictions. And the text's keys and values of a part of the batch.
    text = 2 * config.num_layers * text_rows * config.width * itemsize
    return request.batch * (8 * latents * 4 + text)


@dataclass(frozen=True)
class Computed:
    """A step that ran the transformer for a video: the sample and its predictions, each [C, T, H, W].

    unguided: the prediction for the negative prompt; None in a step without guidance.
    """

    sample: Tensor
    velocity: Tensor
    unguided: Tensor | None

    def at(self, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """The predictions that this step stands for at another sample: prediction - sample is taken to stay."""
        moved = sample - self.sample
        unguided = None if self.unguided is None else (self.unguided + moved).to(self.unguided.dtype)
        return (self.velocity + moved).to(self.velocity.dtype), unguided

    def transformation(self, guidance: float) -> Tensor:
        """Guided prediction - sample, fp32; guidance 1: of the prompt alone."""
        velocity = self.velocity.float()
        if guidance != 1.0 and self.unguided is not None:
            velocity = torch.lerp(self.unguided.float(), velocity, guidance)
        return velocity - self.sample


class Track:
    """One video's way through the steps: what it keeps for reuse, and the error that this is estimated to cost.

    guided: whether each step has guidance. lengths: by how much each step lowers the noise level. guidance: its weight.
    max_error: bound on the estimated relative change of an output that is reused.
    """

    def __init__(self, guided: Sequence[bool], lengths: Sequence[float], guidance: float, max_error: float) -> None:
        self.guided, self.lengths, self.guidance, self.max_error = guided, lengths, guidance, max_error
        self.steps_computed = self.steps_reused = self.guidance_skipped = self.calls = 0
        self.kept: Computed | None = None
        self.previous: Tensor | None = None  # the last step's sample, computed or not
        self.size = 0.0  # of the kept velocity
        self.rate = math.inf  # change of the velocity per change of the sample, between the last two computed steps
        self.path = 0.0  # how far the samples moved since the kept step
        self.reused = 0.0  # sum of length * path over the steps that reused the kept one
        self.unguided = 0.0  # sum of the lengths of steps without guidance whose cost is not in `error` yet
        self.guidance_size = 0.0  # of what guidance added to the velocity when it was last computed
        self.rounding: list[
            float
        ] = []  # |velocity - the unrounded transformer's| in the steps where both were computed
        self.error = 0.0  # |approximate - exact| of the latents, as far as it is known

    def reuses(self, i: int, sample: Tensor) -> bool:
        """Come to step i, and say whether it uses the kept step's predictions."""
        self.unguided += 0.0 if self.guided[i] else self.lengths[i]
        if self.kept is None or self.previous is None:
            return False
        self.path += _norm(sample - self.previous)
        self.previous = sample
        change = self.rate * self.path / max(self.size, TINY)
        complete = self.kept.unguided is not None or not self.guided[i]
        # The last step is computed to close the account; before two are, no rate is known, and change is infinite.
        within = FIRST * len(self.lengths) <= i < len(self.lengths) - 1
        if not (complete and within and change <= self.max_error):
            return False
        self.steps_reused += 1
        self.reused += self.lengths[i] * self.path
        return True

    def computed(self, i: int, step: Computed) -> None:
        """Take note of a step that ran the transformer."""
        self.steps_computed += 1
        self.calls += 1 + self.guided[i]
        self.guidance_skipped += self.guidance > 1.0 and not self.guided[i]
        if step.unguided is not None and not all(self.guided):
            self.guidance_size = (self.guidance - 1.0) * _norm(step.velocity.float() - step.unguided.float())
            self.error, self.unguided = self.error + self.unguided * self.guidance_size, 0.0
        if self.max_error:
            if self.kept is not None:
                self._compare(self.kept, step)
            self.kept, self.previous, self.size = step, step.sample, _norm(step.velocity)
            self.path = self.reused = 0.0

    def prediction(self, sample: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the kept step says for a sample; of the step's own sample, what the transformer said."""
        assert self.kept is not None
        return self.kept.at(sample)

    def account(self, latents: Tensor) -> Account:
        """What was left out, at the end; latents: the clean ones, [C, T, H, W]."""
        error = self.error + self.unguided * self.guidance_size
        if self.rounding:
            error += sum(self.lengths) * sum(self.rounding) / len(self.rounding)
        return Account(
            steps_computed=self.steps_computed,
            steps_reused=self.steps_reused,
            guidance_skipped=self.guidance_skipped,
            calls=self.calls,
            calls_exact=len(self.lengths) * (1 + (self.guidance > 1.0)),
            estimated_error=error / max(_norm(latents), TINY),
        )

    def _compare(self, kept: Computed, step: Computed) -> None:
        """Learn from two computed steps how fast the output changes, and what reuse between them cost."""
        moved = _norm(step.sample - kept.sample)
        self.rate = _norm(step.velocity.float() - kept.velocity.float()) / max(moved, TINY)
        guidance = 1.0 if kept.unguided is None or step.unguided is None else self.guidance
        # By how much reuse would have been wrong at the end of the path; before, in proportion to the path.
        miss = _norm(step.transformation(guidance) - kept.transformation(guidance))
        self.error += self.reused / max(self.path, TINY) * miss


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.float()))


class Predictor:
    """What the sampler asks for each step's prediction.

    dit: called as (samples [b, C, T, H, W], timestep, context). guided: whether each step has guidance.
    positive, negative: the text of all B videos; negative may be None where no step has guidance.
    per_token: whether the transformer takes one timestep per token.
    predicts: "velocity", or "clean": the transformer gives the clean latents, and its velocity is made from them.
    rounded: a transformer that is called instead of `dit`, which in the first and the last step says how far it is off.
    """

    def __init__(
        self,
        dit: DiT,
        schedule: Plan,
        request: Request,
        guided: Sequence[bool],
        positive: TextContext,
        negative: TextContext | None,
        *,
        per_token: bool,
        predicts: str = "velocity",
        rounded: DiT | None = None,
    ) -> None:
        self.rounded = rounded
        self.both: TextContext | None = None
        self.dit, self.timesteps, self.per_token, self.predicts = dit, schedule.timesteps, per_token, predicts
        self.sigmas = schedule.sigmas.tolist()
        self.guided, self.positive, self.negative = guided, positive, negative
        lengths = (schedule.sigmas[:-1] - schedule.sigmas[1:]).tolist()
        knobs = guided, lengths, request.guidance, request.approximation.max_error
        self.tracks = [Track(*knobs) for _ in range(request.batch)]

    def __call__(self, i: int, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predictions of step i for the samples x, fp32 [B, C, T, H, W]: of the prompt and, in a step with guidance,
        of the negative prompt; velocities like x, in the model's dtype or fp32."""
        due = [b for b, track in enumerate(self.tracks) if not track.reuses(i, x[b])]
        if due:
            velocity, unguided = self._compute(i, x, due)
            for n, b in enumerate(due):
                self.tracks[b].computed(i, Computed(x[b], velocity[n], None if unguided is None else unguided[n]))
            if len(due) == len(x):
                return velocity, unguided
        rows = [track.prediction(sample) for track, sample in zip(self.tracks, x, strict=True)]
        others = [unguided for _, unguided in rows if unguided is not None]
        return torch.stack([velocity for velocity, _ in rows]), torch.stack(others) if self.guided[i] else None

    def accounts(self, latents: Tensor) -> list[Account]:
        """What was left out of each video, given its clean latents [B, C, T, H, W]."""
        return [track.account(sample) for track, sample in zip(self.tracks, latents, strict=True)]

    def _compute(self, i: int, x: Tensor, due: list[int]) -> tuple[Tensor, Tensor | None]:
        positive, negative = self.positive, self.negative
        if len(due) < len(x):
            x, positive = x[due], _select(positive, due)
            negative = None if negative is None else _select(negative, due)
        timestep = self.timesteps[i].to(x.device)
        tokens = (math.prod(self.dit.grid(x.shape)),) if self.per_token else ()
        timestep = timestep.expand(len(x), *tokens)
        dit = self.rounded or self.dit
        if self.guided[i] and negative is not None and shares_calls(len(x), self.dit.grid(x.shape)):
            context = self._joined(positive, negative)
            velocity, unguided = dit(torch.cat([x, x]), torch.cat([timestep, timestep]), context).chunk(2)
            unguided = self._velocity(i, x, unguided)
        else:
            velocity, unguided = dit(x, timestep, positive), None
        velocity = self._velocity(i, x, velocity)
        if self.rounded and i in (0, len(self.guided) - 1):
            exact = self._velocity(i, x, self.dit(x, timestep, positive))
            for n, b in enumerate(due):
                self.tracks[b].rounding.append(_norm(velocity[n].float() - exact[n].float()))
        if self.guided[i] and unguided is None:
            unguided = self._velocity(i, x, dit(x, timestep, negative))
        return velocity, unguided

    def _joined(self, positive: TextContext, negative: TextContext) -> TextContext:
        """The texts of one call; those of all videos are kept."""
        if positive is not self.positive:
            return positive.joined(negative)
        if self.both is None:
            self.both = positive.joined(negative)
        return self.both

    def _velocity(self, i: int, x: Tensor, output: Tensor) -> Tensor:
        """What the transformer's output for x says of the velocity; fp32 where it is made from clean latents."""
        return output if self.predicts == "velocity" else (x - output.float()) / self.sigmas[i]


def _select(context: TextContext, rows: Sequence[int]) -> TextContext:
    """The text of some of the videos."""

    def pick(tensor: Tensor) -> Tensor:
        return tensor[rows]

    bias = None if context.bias is None else pick(context.bias)
    return TextContext(tuple(map(pick, context.keys)), tuple(map(pick, context.values)), bias)
