"""A flow whose velocity is known in closed form, and runs of the denoising loop on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pysora import prediction
from pysora.models.dit import TextContext
from pysora.prediction import Predictor, guided_steps
from pysora.request import Defaults, Grid, Request, check_request
from pysora.sampling import plan

SHAPE = (4, 2, 4, 6)


class Flow:
    """A transformer in closed form: the velocity of latents that are normal around a text's value m, with deviation c.

    E[x0 | x] = m + gain (x - (1 - sigma) m) with gain = c^2 (1 - sigma) / (c^2 (1 - sigma)^2 + sigma^2), and
    v = (x - E[x0 | x]) / sigma.
    calls: (step's timestep, number of videos, whether for the negative prompt).
    """

    def __init__(self, deviation: float = 0.5) -> None:
        self.variance = deviation**2
        self.calls: list[tuple[float, int, bool]] = []

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """As many tokens as keep the prompt and the negative prompt in calls of their own."""
        return (prediction.PAIRED, 1, 1)

    def __call__(self, x: Tensor, timestep: Tensor, context: TextContext) -> Tensor:
        sigma = float(timestep[0]) / 1000
        means = context.keys[0]
        self.calls.append((float(timestep[0]), len(x), bool((means == 0).all())))
        assert len(means) == len(timestep) == len(x)
        gain = self.variance * (1 - sigma) / (self.variance * (1 - sigma) ** 2 + sigma**2)
        return (x - means - gain * (x - (1 - sigma) * means)) / sigma


def text(*means: float) -> TextContext:
    rows = torch.tensor(means).reshape(-1, 1, 1, 1, 1)
    return TextContext((rows,), (rows,), None)


def ask(B: int = 1, **options: Any) -> Request:
    return check_request(
        ["a"] * B, defaults=Defaults(), grid=Grid((16, 16), 4), sampler="euler", shift=3.0, options=options
    )


def run(model: Any, means: tuple[float, ...], start: Tensor, **options: Any) -> tuple[Tensor, list[Any]]:
    """Clean latents and accounts of a run with `model`; as in Pipeline."""
    request = ask(len(means), **options)
    schedule = plan(request.sampler, request.steps, request.shift)
    guided = guided_steps(schedule, request)
    predict = Predictor(model, schedule, request, guided, text(*means), text(*(0.0 for _ in means)), per_token=False)
    x, history = start, []
    for i in range(len(schedule)):
        velocity, unguided = predict(i, x)
        assert (unguided is not None) == guided[i]
        x, history = schedule.advance(i, x, velocity, history, prediction_uncond=unguided, guidance=request.guidance)
    return x, predict.accounts(x)
