"""How well a checkpoint follows prompts of the drawn world, by an oracle that proves itself first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pysora.loading import open_model
from pysora.pipeline import Pipeline
from pysora.worlds import Attributes
from pysora.worlds.evaluate import Accuracy, Proof, held_out_prompts, prove, score
from pysora.worlds.oracle import Judgement, judge

PROOF_CLIPS = 200
# The oracle's own proof is on clips of this form, whatever the checkpoint prefers.
FORM: dict[str, Any] = {"size": (128, 128), "frames": 17, "fps": 8}


@dataclass(frozen=True)
class Report:
    """The oracle's proof, and the accuracy over all prompts and per language; None where only the proof was asked."""

    proof: Proof
    accuracy: Accuracy | None
    english: Accuracy | None
    chinese: Accuracy | None

    def __str__(self) -> str:
        rows = ["the oracle on clips whose truth is known", str(self.proof)]
        if self.accuracy is not None:
            rows += ["the model on held-out combinations", f"all       {self.accuracy}"]
        rows += [f"English   {self.english}"] if self.english else []
        rows += [f"Chinese   {self.chinese}"] if self.chinese else []
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "proof_holds": self.proof.holds}


def run(
    n: int = 200,
    model: Pipeline | str | Path | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int = 8,
    dtype: str | None = None,
    on_clip: Callable[[int, int], object] = lambda done, total: None,
) -> Report:
    """Prove the oracle, then score `model` on `n` held-out prompts, English and Chinese in turn.

    model: a pipeline, a checkpoint folder, "embedded", or None for the proof alone. batch: videos made at a time.
    on_clip: called as (clips judged, n). A batch that begins with prompt i is made with seed i.
    Raises ValueError for n or batch below 1.
    """
    if n < 1 or batch < 1:
        raise ValueError(f"n and batch must be at least 1, got {n} and {batch}")
    proof = prove(PROOF_CLIPS)
    if model is None:
        return Report(proof, None, None, None)
    pipeline = open_model(None if model == "embedded" else model, dtype)
    asked = held_out_prompts(n)
    judged: list[tuple[Judgement, Attributes, bool]] = []
    for start in range(0, n, batch):
        part = asked[start : start + batch]
        videos = pipeline.generate([prompt for prompt, _ in part], seed=start, steps=steps, guidance=guidance, **FORM)
        assert isinstance(videos, list)
        for video, (prompt, attributes) in zip(videos, part, strict=True):
            judged.append((judge(video.frames), attributes, prompt.isascii()))
        on_clip(len(judged), n)
    return Report(
        proof, *(_accuracy([j for j in judged if keep is None or j[2] is keep]) for keep in (None, True, False))
    )


def _accuracy(judged: list[tuple[Judgement, Attributes, bool]]) -> Accuracy | None:
    return score([seen for seen, _, _ in judged], [asked for _, asked, _ in judged]) if judged else None
