"""The oracle: right on drawn clips, clean or spoilt, silent where there is nothing to see."""

import numpy as np
import pytest

from pysora import worlds
from pysora.worlds import evaluate, oracle
from pysora.worlds.oracle.regions import components, filled, grown, largest, shrunk, smoothed


def spoilt(frames):
    """As a compression network leaves it: softened edges, a tint of up to 6 levels and noise; about 27 dB."""
    rng = np.random.default_rng(int(frames.sum()) % 1000)
    soft = smoothed(frames.astype(np.float32)) + rng.uniform(-6, 6, 3)
    return np.clip(soft + rng.normal(0, 6, soft.shape) + 0.5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("through", [None, spoilt], ids=["clean", "spoilt"])
def test_oracle_proves_itself(through):
    """A small sample of what `pysora eval` does on hundreds: one mistake more fails it."""
    proof = evaluate.prove(8, seed=3, through=through)
    assert proof.truth.all_four >= (1.0 if through is None else 7 / 8), str(proof)
    assert proof.empty == proof.noise == proof.frozen == 1.0, str(proof)
    assert proof.shuffled.all_four == 0.0
    assert proof.holds or through, str(proof)


def test_a_white_subject_before_a_white_band_is_seen_whole():
    told = worlds.Attributes("dog", "white", "room", "still")
    seen = oracle.judge(worlds.render(told, 796860244).frames)
    assert seen == oracle.Judgement(told.cls, told.colour, told.setting, told.motion)


def test_proof_fails_for_a_network_that_hides_the_subject():
    proof = evaluate.prove(3, seed=1, through=lambda frames: np.full_like(frames, 127))
    assert not proof.holds and proof.truth.all_four == 0.0


@pytest.mark.parametrize(("size", "frames"), [((160, 96), 17), ((97, 161), 21), ((256, 256), 9)], ids=str)
def test_other_sizes_and_lengths(size, frames):
    told = worlds.Attributes("car", "blue", "beach", "runs right")
    seen = oracle.judge(worlds.render(told, 11, size, frames).frames)
    assert seen == oracle.Judgement(told.cls, told.colour, told.setting, told.motion)


def test_mirrored_run_is_a_run_the_other_way():
    told = worlds.Attributes("dog", "red", "snow", "runs left")
    frames = worlds.render(told, 4).frames
    assert oracle.judge(frames).motion == "runs left"
    assert oracle.judge(frames[:, :, ::-1]).motion == "runs right"
    assert oracle.judge(frames[::-1]).motion == "runs right"


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"need uint8 frames \[F,H,W,3\], not float32"):
        oracle.judge(np.zeros((5, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="need uint8 frames"):
        oracle.judge(np.zeros((0, 32, 32, 3), np.uint8))


def test_score_counts_fields():
    asked = [worlds.Attributes("cat", "red", "snow", "still")] * 2
    seen = [oracle.Judgement("cat", "red", "snow", "still"), oracle.Judgement("dog", "red", None, "still")]
    result = evaluate.score(seen, asked)
    assert result.by_field == {"colour": 1.0, "setting": 0.5, "cls": 0.5, "motion": 1.0}
    assert result.all_four == 0.5 and "all four  50.0 %" in str(result)
    with pytest.raises(ValueError, match="as many judgements as attributes"):
        evaluate.score(seen, asked[:1])


def test_held_out_prompts():
    prompts = evaluate.held_out_prompts(40, seed=5)
    assert prompts == evaluate.held_out_prompts(40, seed=5)
    assert all(told.held_out for _, told in prompts)
    assert sum(text.isascii() for text, _ in prompts) == 20


def test_regions():
    picture = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], bool)
    labels, count = components(picture)
    assert count == 3 and len(set(labels[picture])) == 3 and not labels[~picture].any()
    ring = np.zeros((5, 5), bool)
    ring[:3, :3] = True
    hollow = ring.copy()
    hollow[1, 1] = False
    assert np.array_equal(largest(picture), hollow)
    assert np.array_equal(filled(picture), picture | ring)
    assert not largest(np.zeros((4, 4), bool)).any()
    u_shape = np.array([[1, 0, 1], [1, 0, 1], [1, 1, 1]], bool)
    assert components(u_shape)[1] == 1
    dot = np.zeros((1, 5, 5), bool)
    dot[0, 2, 2] = True
    assert grown(dot).sum() == 9 and np.array_equal(shrunk(grown(dot)), dot)
