"""Videos become files: what is written can be read back, and what fails leaves earlier files whole."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pysora.media import Video, check_output

META = {"prompt": "雪地中的狗狗奔跑", "seed": 7}


def clip(F: int = 9, W: int = 48, H: int = 32, fps: float = 8.0) -> Video:
    """A bright square that moves over a gradient: smooth enough for every codec."""
    y, x = np.mgrid[0:H, 0:W]
    ground = np.stack([x * 255 / max(W - 1, 1), y * 255 / max(H - 1, 1), np.full((H, W), 96.0)], -1).astype(np.uint8)
    frames = np.stack([ground] * F)
    for i in range(F):
        frames[i, H // 4 : H // 2, i : i + W // 4] = (250, 240, 30)
    return Video(frames, fps, meta=META)


def decode(path: Path) -> tuple[np.ndarray, float, dict[str, str]]:
    with av.open(str(path)) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        tags = {key.lower(): value for key, value in file.metadata.items()}
        return frames, float(file.streams.video[0].average_rate), tags


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".MP4"])
@pytest.mark.parametrize(("W", "H"), [(48, 32), (47, 33), (128, 128)], ids=["even", "odd", "square"])
def test_video_files_hold_the_frames(tmp_path: Path, suffix: str, W: int, H: int) -> None:
    video = clip(W=W, H=H)
    frames, fps, tags = decode(video.save(tmp_path / f"clip{suffix}"))
    assert frames.shape == video.frames.shape
    assert fps == 8.0
    assert json.loads(tags["comment"]) == {"generator": "pysora", **META}
    assert np.abs(frames.astype(int) - video.frames).mean() < 6


@pytest.mark.parametrize("fps", [7.5, 16.0, 24000 / 1001, 30.0])
def test_frame_rates(tmp_path: Path, fps: float) -> None:
    _, stored, _ = decode(clip(fps=fps).save(tmp_path / "clip.mp4"))
    assert stored == pytest.approx(fps, rel=1e-6)


@pytest.mark.parametrize("fps", [8.0, 24.0])
def test_gif_keeps_speed_and_colours(tmp_path: Path, fps: float) -> None:
    video = clip(F=17, fps=fps)
    total, frames = 0, []
    with Image.open(video.save(tmp_path / "clip.gif")) as image:
        assert image.info["loop"] == 0
        for i in range(image.n_frames):
            image.seek(i)
            total += image.info["duration"]
            frames.append(np.asarray(image.convert("RGB")))
    assert total == round(100 * 17 / fps) * 10
    assert np.abs(np.stack(frames).astype(int) - video.frames).mean() < 12


def test_png_of_one_frame_is_that_frame(tmp_path: Path) -> None:
    video = clip(F=1)
    with Image.open(video.save(tmp_path / "image.png")) as image:
        assert np.array_equal(np.asarray(image), video.frames[0])
        assert json.loads(image.text["comment"])["prompt"] == META["prompt"]


def test_png_of_many_frames_is_the_contact_sheet(tmp_path: Path) -> None:
    video = clip(F=5)
    with Image.open(video.save(tmp_path / "sheet.png")) as image:
        assert np.array_equal(np.asarray(image), np.asarray(video.contact_sheet()))


@pytest.mark.parametrize(("F", "columns", "gap"), [(5, 3, 2), (1, None, 0), (17, None, 1), (4, 9, 0)])
def test_contact_sheet_shows_every_frame(F: int, columns: int | None, gap: int) -> None:
    video = clip(F=F)
    sheet = np.asarray(video.contact_sheet(columns, gap))
    W, H = video.size
    across = (sheet.shape[1] + gap) // (W + gap)
    assert across == (min(columns, F) if columns else across)
    for i, frame in enumerate(video.frames):
        y, x = i // across * (H + gap), i % across * (W + gap)
        assert np.array_equal(sheet[y : y + H, x : x + W], frame)


def test_notebooks_show_an_image_or_a_player() -> None:
    image, video = clip(F=1), clip(F=3)
    assert image._repr_html_() is None
    assert (image._repr_png_() or b"").startswith(b"\x89PNG")
    assert video._repr_png_() is None
    assert (video._repr_html_() or "").startswith('<video src="data:video/mp4;base64,AAAA')


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"earlier")

    def full(self: Video, temporary: Path, container: str) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Video, "_write_video", full)
    with pytest.raises(OSError, match="No space left"):
        clip().save(path)
    assert path.read_bytes() == b"earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_check_output_touches_nothing(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 60 + ".gif")
    assert check_output(path) == path
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("clip.avi", ValueError, "must end in .mp4, .webm, .gif, .png"),
        ("clip", ValueError, "must end in"),
        ("missing/clip.mp4", ValueError, "does not exist"),
        ("folder.mp4", ValueError, "is a folder"),
        ("x" * 300 + ".mp4", PermissionError, "cannot be written"),
    ],
    ids=["ending", "no ending", "no folder", "a folder", "name too long"],
)
def test_outputs_that_cannot_be_written(tmp_path: Path, name: str, error: type[Exception], words: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(error, match=words):
        check_output(tmp_path / name)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
    ids=["float", "no time axis", "empty"],
)
def test_frames_that_are_no_video(frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="frames must"):
        Video(frames)


@pytest.mark.parametrize("fps", [0.0, -8.0, float("nan"), float("inf")])
def test_rates_that_are_none(fps: float) -> None:
    with pytest.raises(ValueError, match="fps must lie"):
        Video(np.zeros((1, 2, 2, 3), np.uint8), fps)
