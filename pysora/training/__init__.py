"""How the embedded model is made on two CPU cores: autoencoder, text encoder, transformer."""

from __future__ import annotations

from functools import partial
from pathlib import Path

STAGES = ("vae", "text", "sketch", "dit", "decoder", "export")
ALL = {"vae": 0.3, "text": 0.05, "dit": 0.5, "decoder": 0.15, "export": 1.0}
"""The stages of "all", and each one's share of the minutes: about what the shipped weights took."""
_NEEDS = {
    "sketch": ("vae/components.safetensors", "text/final"),
    "dit": ("vae/final", "text/final"),
    "decoder": ("vae/final",),
    "export": ("vae/final", "text/final", "dit/final"),
}
_SHARED = ("sketch", "dit", "decoder")
"""Stages that several processes can do together."""


def run(
    stage: str, out: Path, minutes: float, resume: bool = False, start: Path | None = None, workers: int = 1
) -> Path:
    """Run one stage of the training in the folder `out`; each needs those before it.

    stage: "vae", "text", "sketch" (the transformer while the autoencoder is still trained; may be left out), "dit",
        "decoder" (the autoencoder's decoder alone, which changes no latents: for time left over) or "export" (writes
        the checkpoint in the layout that `pysora.load` and diffusers read); "all": those of `ALL`, one after the other.
    minutes: the length of the stage over all its segments; "export" does not use it.
    resume: go on from the state that an earlier segment left in `out`.
    start: a checkpoint folder whose weights the stage begins with, instead of random ones; not for "sketch".
    workers: processes that train together ("sketch", "dit" and "decoder" only), each with a share of the threads.
    returns: the folder that holds the result.
    Raises ValueError for an unknown stage, and for workers or a start that it cannot have; FileNotFoundError where an
    earlier stage is missing.
    """
    if stage not in (*STAGES, "all"):
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, all, not {stage!r}")
    if not minutes > 0:
        raise ValueError(f"minutes must be above 0, got {minutes}")
    if stage == "all":
        made = out
        for each, share in ALL.items():
            made = run(each, out, minutes * share, resume, start, workers if each in _SHARED else 1)
        return made
    if workers < 1 or (workers > 1 and stage not in _SHARED):
        raise ValueError(f"workers must be 1, or more for {', '.join(_SHARED)}; got {workers} for {stage}")
    if start and stage == "sketch":
        raise ValueError(f"start must be left out for sketch, which begins with coarse tokens; got {start}")
    for path in _NEEDS.get(stage, ()):
        if not (out / path).exists():
            raise FileNotFoundError(f"{out / path}: run the stage {path.split('/')[0]!r} first")
    # A group of processes needs torch.distributed, which one process does without.
    if workers > 1:
        from pysora.training.workers import group

        with group(workers, partial(_stage, stage, out, minutes, resume, start)):
            return _stage(stage, out, minutes, resume, start)
    return _stage(stage, out, minutes, resume, start)


def _stage(stage: str, out: Path, minutes: float, resume: bool, start: Path | None) -> Path:
    """`run` in this process."""
    if stage == "vae":
        from pysora.training import autoencoder

        return autoencoder.train(out, minutes, resume, start)
    if stage == "decoder":
        from pysora.training import autoencoder

        return autoencoder.train_decoder(out, minutes, resume, start)
    if stage == "text":
        from pysora.training import reader

        return reader.train(out, minutes, resume, start)
    if stage in ("sketch", "dit"):
        from pysora.training import diffusion

        return (
            diffusion.sketch(out, minutes, resume)
            if stage == "sketch"
            else diffusion.train(out, minutes, resume, start)
        )
    from pysora.training import export

    return export.write(out, out / "model")
