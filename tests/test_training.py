"""The training code: optimiser, resumable runs, noise levels with known frames, targets."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pysora import ops, training, worlds
from pysora.checkpoint import load_module, save_module
from pysora.loading import embedded_path
from pysora.models.positions import rope_tables
from pysora.models.text import TextEncoder
from pysora.training import autoencoder, diffusion, export, loop, reader
from pysora.training.clips import ClipPool, draw, to_model
from pysora.training.coarse import CoarseDiT, refine
from pysora.training.components import Components, blocks
from pysora.training.latents import LatentPool, occupancy
from pysora.training.loop import Run, optimizers
from pysora.training.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 8), (16, 120), (120, 16), (1, 5)], ids=str)
def test_orthogonalize_evens_the_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalize(matrix)
    assert result.shape == matrix.shape
    # In the basis of the input, the result is diagonal with entries near one.
    diagonal = u.T @ result @ v.T
    values = diagonal.diagonal()
    assert float(values.min()) > 0.2
    assert float(values.max()) < 1.25
    assert float((diagonal - torch.diag(values)).abs().max()) < 0.03


def test_matrices_of_one_shape_are_made_orthogonal_together() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 8, 24)
    torch.testing.assert_close(orthogonalize(matrices), torch.stack([orthogonalize(m) for m in matrices]))


def test_muon_fits_a_matrix() -> None:
    torch.manual_seed(0)
    target = torch.linalg.qr(torch.randn(12, 12))[0]
    weight = nn.Parameter(torch.zeros(12, 12))
    muon = Muon([weight], lr=0.02)
    first = float(target.square().sum())
    for _ in range(100):
        loss = (weight - target).square().sum()
        muon.zero_grad()
        loss.backward()
        muon.step()
    assert float(loss.detach()) < 0.02 * first


def fit(folder: Path, minutes: float, resume: bool = False) -> Run:
    """A run that fits a small network to a fixed function; the step decides the data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    run = Run(
        folder,
        model,
        optimizers(model, lambda n, p: n == "2.weight", 0.01, 1e-2),
        minutes,
        resume,
        warmup=1,
        log_every=2,
    )

    def step(number: int) -> tuple[torch.Tensor, dict[str, float], int]:
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(number))
        return (model(x) - x.sum(1, keepdim=True)).square().mean(), {}, 32

    run.train(step)
    return run


def test_a_run_learns_stops_by_the_clock_and_resumes(tmp_path: Path) -> None:
    first = fit(tmp_path, minutes=0.02)
    assert first.elapsed >= 0.02 * 60
    assert first.seen == 32 * first.steps
    rows = (tmp_path / "losses.csv").read_text().splitlines()
    losses = [float(row.split(",")[-1]) for row in rows if ",loss," in row]
    assert losses[-1] < 0.7 * losses[0]
    second = fit(tmp_path, minutes=1.2 * first.elapsed / 60, resume=True)
    assert second.steps > first.steps
    moments = second.optimizers[1].state_dict()["state"][0]
    assert int(moments["step"]) == second.steps


def test_resume_takes_up_weights_averages_and_optimizers(tmp_path: Path) -> None:
    first = fit(tmp_path, minutes=0.005)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))
    again = Run(tmp_path, model, optimizers(model, lambda n, p: n == "2.weight", 0.01, 1e-2), 1.0, resume=True)
    assert again.steps == first.steps
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), first.model.parameters(), strict=True))
    assert all(torch.equal(again.averaged[n], first.averaged[n]) for n in first.averaged)
    mine, theirs = (r.optimizers[0].state_dict()["state"][0]["average"] for r in (again, first))
    assert torch.equal(mine, theirs)


def test_a_training_from_nothing_begins_a_record_of_its_own(tmp_path: Path) -> None:
    first = fit(tmp_path, minutes=0.005)
    fit(tmp_path, minutes=2 * first.elapsed / 60, resume=True)
    longer = (tmp_path / "losses.csv").read_text().splitlines()
    assert longer.count("step,seconds,seen,name,value") == 1
    fit(tmp_path, minutes=0.005)
    steps = [int(row.split(",")[0]) for row in (tmp_path / "losses.csv").read_text().splitlines()[1:]]
    assert steps == sorted(steps)


def test_an_interrupt_saves_the_state(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    run = Run(tmp_path, model, optimizers(model, lambda n, p: False, 0.1, 0.1), 1.0)

    def step(number: int) -> tuple[torch.Tensor, dict[str, float], int]:
        if number == 3:
            raise KeyboardInterrupt
        return model(torch.ones(1, 2)).square().sum(), {}, 1

    with pytest.raises(KeyboardInterrupt):
        run.train(step)
    again = Run(tmp_path, nn.Linear(2, 2), run.optimizers, 1.0, resume=True)
    assert again.steps == 3
    assert torch.equal(again.model.weight, model.weight)


def test_averaged_weights_stand_in_only_inside(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    run = Run(tmp_path, model, optimizers(model, lambda n, p: False, 0.1, 0.1), 1.0)
    before = model.weight.detach().clone()
    run.averaged["weight"] += 1
    with run.averaged_weights():
        assert torch.equal(model.weight, before + 1)
    assert torch.equal(model.weight, before)


def test_nothing_to_resume(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    assert Run(tmp_path, model, optimizers(model, lambda n, p: False, 0.1, 0.1), 1.0, resume=True).steps == 0


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    run = Run(tmp_path, model, optimizers(model, lambda n, p: False, 0.1, 0.1), 1.0)
    with pytest.raises(FloatingPointError, match="step 0: the gradient is not finite"):
        run.train(lambda _: (model(torch.full((1, 2), torch.inf)).sum() * 0, {}, 1))


@pytest.mark.parametrize("frames", [2, 3, 5, 9])
def test_known_frames_leave_something_to_make(frames: int) -> None:
    rng = np.random.default_rng(0)
    sets = {tuple(diffusion.known_frames(frames, rng)) for _ in range(400)}
    assert all(0 < sum(known) < frames for known in sets)
    assert (True,) + (False,) * (frames - 1) in sets
    assert (False,) * (frames - 1) + (True,) in sets
    if frames > 2:
        assert (True,) + (False,) * (frames - 2) + (True,) in sets


def test_noise_levels_are_zero_where_frames_are_known() -> None:
    levels, known = diffusion.noise_levels(400, 5, np.random.default_rng(0))
    assert float(levels[known].abs().max()) == 0
    assert 0.15 < float(known.any(1).float().mean()) < 0.35
    images, none = diffusion.noise_levels(20000, 1, np.random.default_rng(0))
    assert not none.any()
    assert float(images.min()) > 0

    def above(level: float, shift: float) -> float:
        """The shift s multiplies the odds of sigmoid(n) by s, n normal."""
        return 0.5 * math.erfc(math.log(level / (1 - level) / shift) / math.sqrt(2))

    for level in (0.5, 0.9):
        less, usual = above(level, diffusion.DETAIL_SHIFT), above(level, diffusion.SHIFT)
        expected = usual + diffusion.DETAIL_SHARE * (less - usual)
        assert float((images > level).float().mean()) == pytest.approx(expected, abs=0.015)


def test_occupancy_is_the_share_of_each_cell() -> None:
    boxes = np.array([[0.0, 0.0, 0.5, 0.25]] * 5)
    cells = occupancy(boxes, (2, 2, 2), stride=4).view(2, 2, 2)
    assert torch.equal(cells[0], torch.tensor([[0.5, 0.0], [0.0, 0.0]]))
    assert torch.equal(cells[0], cells[1])


def test_clips_are_never_held_out() -> None:
    rng = np.random.default_rng(0)
    samples = [draw(rng, (64, 32, 5)) for _ in range(20)]
    assert not any(s.attributes.held_out for s in samples)
    assert samples[0].frames.shape == (5, 32, 64, 3)
    assert all(s.boxes.min() >= 0 and s.boxes.max() <= 1 for s in samples)
    video = to_model([s.frames for s in samples])
    assert video.shape == (20, 3, 5, 32, 64)
    assert -1 <= float(video.min()) < float(video.max()) <= 1


def test_clip_pool_draws_windows_and_renews() -> None:
    pool = ClipPool((64, 32, 5), 3, np.random.default_rng(0))
    before = list(pool.samples)
    pool.renew(2)
    assert [a is b for a, b in zip(before, pool.samples, strict=True)] == [False, False, True]
    assert pool.batch(2).shape == (2, 3, 5, 32, 64)
    video, weight = pool.weighted(2, 3.0, (16, 32, 3))
    assert video.shape == (2, 3, 3, 32, 16)
    assert weight.shape == (2, 1, 3, 32, 16)


def test_weights_lie_on_the_subject() -> None:
    pool = ClipPool((64, 48, 5), 1, np.random.default_rng(3))
    video, weight = pool.weighted(1, 3.0, (64, 48, 5))
    boxes = pool.samples[0].boxes * (64, 48, 64, 48)
    for frame, (x0, y0, x1, y1) in zip(weight[0, 0], boxes.round().astype(int), strict=True):
        assert (frame[y0:y1, x0:x1] == 3).all()
        assert int((frame == 3).sum()) <= (x1 - x0 + 4) * (y1 - y0 + 4)
        assert set(frame.unique().tolist()) == {1.0, 3.0}
    assert video.shape[2:] == weight.shape[2:]


def test_components_hold_most_of_a_clip(tmp_path: Path) -> None:
    pool = ClipPool((64, 48, 5), 6, np.random.default_rng(4))
    components = Components.measure(lambda: pool.batch(2), 8, 48)
    video = pool.batch(3)
    latents = components.project(video)
    assert latents.shape == (3, 48, 2, 3, 4)
    # Orthogonal rows: the transpose, over their squares, brings the blocks back as well as can be.
    gram = components.basis @ components.basis.T
    squares = gram.diagonal()
    torch.testing.assert_close(gram, squares.diag(), atol=1e-3 * float(squares[0]), rtol=0)
    rows = blocks(video)
    back = (latents.movedim(1, -1) / squares) @ components.basis + components.mean
    assert float((back - rows).square().mean()) < 0.05 * float((rows - components.mean).square().mean())
    components.save(tmp_path / "components.safetensors")
    assert torch.equal(Components.load(tmp_path / "components.safetensors").basis, components.basis)


def test_a_block_is_a_first_frame_or_four_later_ones() -> None:
    video = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 3, 5, 16, 32)
    first, second = blocks(video)[0, :, 0, 1].view(2, 3, 4, 16, 16)[:, 0, :, 0, 0]
    assert first.tolist() == [0, 0, 0, 0]
    assert second.tolist() == [1, 2, 3, 4]


def test_flow_loss_is_of_the_velocity_and_of_unknown_frames() -> None:
    """A transformer that is off by 0.06 everywhere: (0.06 / level)^2, over the smallest level where it is lower."""
    torch.manual_seed(0)
    z = torch.randn(3, 4, 5, 4, 4)
    levels = torch.tensor([0.5, 0.3, 0.02])[:, None].repeat(1, 5)
    known = torch.zeros(3, 5, dtype=torch.bool)
    known[0, 1:3] = True
    levels[known] = 0.0

    class Off(nn.Module):
        def grid(self, shape: torch.Size) -> tuple[int, int, int]:
            return shape[2], shape[3] // 2, shape[4] // 2

        def encode_text(self, *_: object) -> None: ...

        def forward(self, x: torch.Tensor, timestep: torch.Tensor, context: None) -> torch.Tensor:
            assert timestep.shape == (3, 20)
            assert torch.equal(x[0, :, 1:3], z[0, :, 1:3])
            return z + 0.06 + 5 * known[:, None, :, None, None]

    trainer = object.__new__(diffusion.Trainer)
    trainer.rng = np.random.default_rng(0)
    trainer.bank = SimpleNamespace(batch=lambda attributes, dropped: (None, None))
    trainer.text = SimpleNamespace(text_length=8)
    loss = float(trainer.flow_loss(Off(), z, levels, known, []))
    shares = [(3 / 13, 0.5), (5 / 13, 0.3), (5 / 13, diffusion.SMALLEST_LEVEL)]
    assert loss == pytest.approx(sum(share * (0.06 / level) ** 2 for share, level in shares), rel=1e-5)


def test_latent_pools_keep_the_newest() -> None:
    pool = LatentPool(lambda video: video[:, :, :1, ::8, ::8], (32, 32, 5), 3, np.random.default_rng(0))
    pool.add(2)
    assert len(pool) == 2
    pool.add(2)
    assert len(pool) == 3
    assert pool.next == 1
    latents, attributes, boxes = pool.batch(4)
    assert latents.shape == (4, *pool.shape[1:]) == (4, 3, 1, 4, 4)
    assert len(attributes) == 4
    assert [b.shape for b in boxes] == [(5, 4)] * 4


TINY = diffusion.DiTConfig(
    patch_size=(1, 1, 1),
    num_attention_heads=2,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=8,
    ffn_dim=16,
    num_layers=2,
    freq_dim=16,
)


def coarse_dit() -> CoarseDiT:
    torch.manual_seed(0)
    return CoarseDiT(dataclasses.replace(TINY, patch_size=CoarseDiT.cells))


def test_coarse_tokens_stand_where_the_first_of_their_cells_do() -> None:
    coarse, cpu = coarse_dit(), torch.device("cpu")
    for ours, fine in zip(coarse.rope((2, 3, 2), cpu), rope_tables((2, 6, 4), 12, cpu), strict=True):
        assert torch.equal(ours, fine.view(2, 6, 4, -1)[:, ::2, ::2].reshape(ours.shape))


def test_fine_tokens_begin_as_the_coarse_ones_of_even_patches() -> None:
    coarse = coarse_dit()
    fine = refine(coarse, TINY)
    assert fine.config.patch_size == (1, 1, 1)
    even = torch.randn(2, 4, 3, 2, 3).repeat_interleave(2, 3).repeat_interleave(2, 4)
    tokens = [
        ops.patch_embed(even, dit.patch_embedding.weight, dit.patch_embedding.bias).detach() for dit in (coarse, fine)
    ]
    per_cell = tokens[0].view(2, 3, 2, 3, -1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(tokens[1].view_as(per_cell), per_cell)
    # What is said of a patch: the mean over its cells.
    hidden = torch.randn(2, 3 * 2 * 3, TINY.width)
    said = [
        ops.unpatchify(h @ dit.proj_out.weight.T + dit.proj_out.bias, grid, dit.config.patch_size)
        for h, dit, grid in (
            (hidden, coarse, (3, 2, 3)),
            (
                hidden.view(2, 3, 2, 3, -1).repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1, 3),
                fine,
                (3, 4, 6),
            ),
        )
    ]
    mean = F.avg_pool3d(said[0], (1, 2, 2))
    torch.testing.assert_close(F.avg_pool3d(said[1], (1, 2, 2)), mean)
    assert torch.equal(said[1][..., ::2, ::2], said[1][..., 1::2, 1::2])
    unchanged = [n for n, p in fine.state_dict().items() if n.split(".")[0] not in ("patch_embedding", "proj_out")]
    assert all(torch.equal(fine.state_dict()[n], coarse.state_dict()[n]) for n in unchanged)


class Drawn:
    """Stands for the trainer: a loss without data, and a record of the patches and the share of images."""

    steps: ClassVar[list[tuple[tuple[int, int, int], float]]] = []

    def __init__(self, *_: object) -> None:
        self.text = None

    def step(self, model: diffusion.Auxiliary, images: float) -> tuple[torch.Tensor, dict[str, float], int]:
        Drawn.steps.append((model.dit.config.patch_size, images))
        return sum(p.square().sum() for p in model.parameters()), {}, 1


def test_a_training_from_nothing_begins_with_coarse_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "Trainer", Drawn)
    monkeypatch.setattr(Drawn, "steps", [])
    monkeypatch.setattr(diffusion, "CONFIG", TINY)
    monkeypatch.setattr(diffusion, "COARSE", dataclasses.replace(TINY, patch_size=CoarseDiT.cells))
    judged: list[tuple[Path, int]] = []
    monkeypatch.setattr(diffusion, "look", lambda run, text, vae, count: judged.append((run.folder, count)))
    # Every look at the clock takes a second.
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=partial(next, itertools.count())))
    shutil.copytree(embedded_path() / "vae", tmp_path / "vae" / "final")
    images, coarse, fine = ((1, 2, 2), 0.75), ((1, 2, 2), 0.08), ((1, 1, 1), 0.08)

    def train(minutes: float, **how: Any) -> list[object]:
        Drawn.steps.clear()
        assert load_module(diffusion.DiT, diffusion.train(tmp_path, minutes, **how), torch.float32).config == TINY
        return list(dict.fromkeys(Drawn.steps))

    assert train(2, resume=False) == [images, coarse, fine]
    assert judged == [(tmp_path / "dit" / "coarse", diffusion.GATE)]
    seen = len(Drawn.steps)
    assert 0.4 < sum(patch == (1, 2, 2) for patch, _ in Drawn.steps) / seen < 0.7
    assert train(2, resume=True) == []
    assert len(judged) == 1
    # Fine tokens go on as such, and so do those of a checkpoint.
    assert train(3, resume=True) == [fine]
    record = json.loads((tmp_path / "dit" / "progress.json").read_text())
    assert record["seen"] == seen + len(Drawn.steps)
    shutil.copytree(tmp_path / "dit" / "final", tmp_path / "model" / "transformer")
    assert train(1, resume=False, start=tmp_path / "model") == [fine]


def test_autoencoder_loss_falls() -> None:
    torch.manual_seed(0)
    vae = autoencoder.VAE(autoencoder.CONFIG)
    opts = optimizers(vae, lambda n, p: p.ndim >= 4, 0.02, 2e-3)
    video = to_model([draw(np.random.default_rng(0), (32, 32, 5)).frames])
    values = []
    for _ in range(12):
        loss, _ = autoencoder.losses(
            vae, video, torch.ones_like(video[:, :1]), torch.zeros(1, autoencoder.CONFIG.z_dim, 2, 2, 2)
        )
        loss.backward()
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad()
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]


def test_decoder_stage_leaves_the_latents_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "SIZES", (((64, 64, 5), 2),) * 4)
    before = autoencoder.VAE(autoencoder.CONFIG)
    save_module(before, tmp_path / "vae" / "final")
    training.run("decoder", tmp_path, minutes=0.02)
    after = load_module(autoencoder.VAE, tmp_path / "vae" / "final", torch.float32)
    assert after.config == before.config
    changed = {n.split(".")[0] for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert changed == {"decoder", "post_quant_conv"}


def test_captions_say_what_the_targets_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        text, targets = reader.caption(rng)
        assert text
        assert len(targets) == 4
        assert targets[0] < len(worlds.CLASSES)
        assert all(t <= len(names) for t, (_, names) in zip(targets, reader.FIELDS, strict=True))


def test_stages_are_named_and_ordered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage must be one of vae, text, .*, export, all, not 'gan'"):
        training.run("gan", tmp_path, 1)
    with pytest.raises(ValueError, match="minutes must be above 0, got 0"):
        training.run("vae", tmp_path, 0)
    with pytest.raises(FileNotFoundError, match="run the stage 'vae' first"):
        training.run("dit", tmp_path, 1)
    with pytest.raises(ValueError, match="start must be left out for sketch, which begins with coarse tokens; got "):
        training.run("sketch", tmp_path, 1, start=tmp_path)


def test_all_stages_share_the_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, float, bool]] = []

    def stage(name: str, out: Path, minutes: float, resume: bool, start: Path | None) -> Path:
        done.append((name, minutes, resume))
        for path in (p for needs in training._NEEDS.values() for p in needs if p.startswith(name)):
            (out / path).mkdir(parents=True, exist_ok=True)
        return out / name

    monkeypatch.setattr(training, "_stage", stage)
    assert training.run("all", tmp_path, 100, resume=True) == tmp_path / "export"
    assert [name for name, _, _ in done] == ["vae", "text", "dit", "decoder", "export"]
    assert sum(minutes for _, minutes, _ in done[:-1]) == pytest.approx(100)
    assert all(resume for _, _, resume in done)


def test_exported_parts_keep_their_record_or_get_the_embedded_models(tmp_path: Path) -> None:
    runs, shipped = tmp_path / "runs", embedded_path()
    for part, place in {"vae": "vae/final", "transformer": "dit/final"}.items():
        shutil.copytree(shipped / part, runs / place)
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(shipped / part, runs / "text" / "final" / part)
    (runs / "dit" / "progress.json").write_text('{"steps": 7}')
    record = json.loads((export.write(runs, tmp_path / "model") / "training.json").read_text())
    assert record == {**json.loads((shipped / "training.json").read_text()), "dit": {"steps": 7}}


def test_captions_are_cut_into_words_and_what_no_caption_says_into_letters(tmp_path: Path) -> None:
    words = reader.train_tokenizer(tmp_path, np.random.default_rng(1))

    def pieces(text: str) -> list[str]:
        return words.convert_ids_to_tokens(words(text)["input_ids"])

    assert pieces("A star, from RIGHT") == ["▁a", "▁star", "▁,", "▁from", "▁right", "</s>"]
    assert pieces("一只猫") == ["▁一", "▁只", "▁猫", "</s>"]
    assert pieces("a zebra") == ["▁a", "▁", *"zebra", "</s>"]


def test_captions_that_name_both_sides() -> None:
    rng = np.random.default_rng(3)
    for _ in range(8):
        text, named = reader.ordered(rng)
        assert ("left" in text and "right" in text) or ("左" in text and "右" in text)
        assert worlds.MOTIONS[named[3]] in ("runs left", "runs right")


def test_what_each_name_adds_to_the_embedded_encoders_tokens() -> None:
    table = reader.meanings(embedded_path(), 1280)
    text = TextEncoder.load(embedded_path() / "text_encoder", embedded_path() / "tokenizer", dtype=torch.float32)
    rng = np.random.default_rng(9)
    texts, targets = zip(*(reader.caption(rng) for _ in range(64)), strict=True)
    embeds, lengths = text.encode(texts)
    tokens = embeds.sum(1) / lengths[:, None]
    away = (tokens - reader.one_hot(torch.tensor(targets)) @ table).square().sum(1).median()
    assert 0 < float(away) < 0.15 * float((tokens - tokens.mean(0)).square().sum(1).mean())


def test_the_distance_of_tokens_from_their_captions_places() -> None:
    places, mask = torch.randn(3, 256), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    tokens = places[:, None].repeat(1, 4, 1).masked_fill(mask[..., None] == 0, 9.0)
    assert float(reader.distance(tokens, mask, places)) == 0
    tokens[1, 0] += 2
    assert float(reader.distance(tokens, mask, places)) == pytest.approx(4 / 7)


def test_an_encoder_that_takes_anothers_place_can_be_loaded(tmp_path: Path) -> None:
    made = reader.train(tmp_path, 1e-6, resume=False, start=embedded_path())
    text = TextEncoder.load(made / "text_encoder", made / "tokenizer", dtype=torch.float32)
    embeds, lengths = text.encode(["a star slides from right to left", "一只猫"])
    assert embeds.shape == (2, 8, 256)
    assert lengths.tolist() == [8, 4]
    assert json.loads((tmp_path / "text" / "progress.json").read_text())["steps"] == 1
