"""What generation returns: a video, and how it becomes a file or a picture in a notebook.

Files are written beside their target and take its place at the end, so a failed write leaves an earlier file whole.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

if TYPE_CHECKING:
    from torch import Tensor

Frames = npt.NDArray[np.uint8]
SUFFIXES = (".mp4", ".webm", ".gif", ".png")


@dataclass(frozen=True)
class Video:
    """A clip, or an image where it has one frame.

    frames: uint8 [F, H, W, 3], RGB.
    fps: frames per second.
    latents: fp32 [C, T, H, W], what the frames were decoded from (normalised), on the CPU; None where unknown.
    meta: how it was made (prompt, seed, size, ...), plain JSON values; written into MP4, WebM and PNG files.
    Raises ValueError where a shape, a dtype or the rate does not fit.
    """

    frames: Frames
    fps: float = 16.0
    latents: Tensor | None = field(default=None, repr=False, compare=False)
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.frames.dtype != np.uint8 or self.frames.ndim != 4 or self.frames.shape[3] != 3:
            raise ValueError(f"frames must be uint8 [F, H, W, 3], got {self.frames.dtype} {list(self.frames.shape)}")
        if 0 in self.frames.shape:
            raise ValueError(f"frames must hold at least one frame of one pixel, got {list(self.frames.shape)}")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps must lie between 0 and 1000, got {self.fps!r}")

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        F, H, W, _ = self.frames.shape
        return f"Video({W}x{H}, {F} frame{'s' * (F > 1)}, {self.fps:g} fps)"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.frames.shape[2], self.frames.shape[1]

    def save(self, path: str | Path) -> Path:
        """Write the video; the ending chooses the format.

        .mp4: H.264. .webm: VP9. .gif: loops for ever. .png: the frame where there is one, else the contact sheet.
        Raises ValueError on another ending, OSError where the file cannot be written; an earlier file is then whole.
        """
        path = check_output(path)
        with _replacing(path) as temporary:
            if path.suffix.lower() == ".gif":
                self._write_gif(temporary)
            elif path.suffix.lower() == ".png":
                image = Image.fromarray(self.frames[0]) if len(self) == 1 else self.contact_sheet()
                info = PngImagePlugin.PngInfo()
                info.add_itxt("comment", self._comment())
                image.save(temporary, format="PNG", pnginfo=info)
            else:
                self._write_video(temporary, path.suffix.lower()[1:])
        return path

    def contact_sheet(self, columns: int | None = None, gap: int = 2) -> Image.Image:
        """All frames in reading order on one white picture, about twice as wide as it is tall unless `columns` says."""
        F, H, W, _ = self.frames.shape
        if columns is None:
            columns = math.ceil(math.sqrt(2 * F * H / W))
        if columns < 1 or gap < 0:
            raise ValueError(f"columns must be at least 1 and gap at least 0, got {columns} and {gap}")
        columns = min(columns, F)
        rows = math.ceil(F / columns)
        sheet = np.full((rows * (H + gap) - gap, columns * (W + gap) - gap, 3), 255, np.uint8)
        for i, frame in enumerate(self.frames):
            y, x = i // columns * (H + gap), i % columns * (W + gap)
            sheet[y : y + H, x : x + W] = frame
        return Image.fromarray(sheet)

    def _repr_png_(self) -> bytes | None:
        """The picture of a one-frame video, for notebooks."""
        if len(self) > 1:
            return None
        buffer = io.BytesIO()
        Image.fromarray(self.frames[0]).save(buffer, format="PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str | None:
        """A player with the video inside, for notebooks."""
        if len(self) == 1:
            return None
        with tempfile.TemporaryDirectory() as folder:
            data = base64.b64encode(self.save(Path(folder) / "video.mp4").read_bytes()).decode()
        W, H = self.size
        source = f"data:video/mp4;base64,{data}"
        return f'<video src="{source}" width="{W}" height="{H}" autoplay loop muted controls playsinline></video>'

    def _comment(self) -> str:
        return json.dumps({"generator": "pysora", **self.meta}, ensure_ascii=False)

    def _write_video(self, path: Path, container: str) -> None:
        import av

        # 4:2:0 holds even sizes alone in H.264: an odd size keeps its last row and column in 4:4:4.
        even = all(side % 2 == 0 for side in self.size)
        codec = "libx264" if container == "mp4" else "libvpx-vp9"
        options = {"crf": "17", "preset": "medium"} if container == "mp4" else {"crf": "24", "b": "0", "row-mt": "1"}
        with av.open(str(path), "w", format=container, options=_container_options(container)) as output:
            output.metadata["comment"] = self._comment()
            stream = output.add_stream(codec, rate=Fraction(self.fps).limit_denominator(1001), options=options)
            stream.width, stream.height = self.size
            stream.pix_fmt = "yuv420p" if even or container == "webm" else "yuv444p"
            for frame in self.frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            output.mux(stream.encode(None))

    def _write_gif(self, path: Path) -> None:
        # One palette for the whole clip: a palette per frame flickers.
        step = max(1, len(self) // 16)
        montage = Image.fromarray(self.frames[::step].reshape(-1, self.size[0], 3))
        palette = montage.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        images = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for f in self.frames]
        # GIF counts in hundredths of a second: round the ends, not the lengths, and the clip keeps its speed.
        ends = [round(100 * i / self.fps) for i in range(len(self) + 1)]
        durations = [10 * (b - a) for a, b in itertools.pairwise(ends)]
        images[0].save(
            path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, disposal=1
        )


def check_output(path: str | Path) -> Path:
    """Find out before a long run whether `path` can be written, and leave an existing file as it is.

    Raises ValueError where the ending is unknown or the folder is missing, PermissionError where it is not writable.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the output must end in {', '.join(SUFFIXES)}, got {str(path)!r}")
    try:
        if path.is_dir():
            raise ValueError(f"the output {str(path)!r} is a folder")
        if not path.parent.is_dir():
            raise ValueError(f"the output's folder {str(path.parent)!r} does not exist")
        # Writing is what counts: permission bits say little for root, and nothing of a read-only file system.
        with _replacing(path, keep=False) as probe:
            probe.touch()
    except OSError as error:
        raise PermissionError(f"the output {str(path)!r} cannot be written ({error.strerror or error})") from error
    return path


def _container_options(container: str) -> dict[str, str]:
    # The index in front lets a browser play before it has the whole file.
    return {"movflags": "+faststart"} if container == "mp4" else {}


@contextmanager
def _replacing(target: Path, keep: bool = True) -> Iterator[Path]:
    """A path in the target's folder to write to; with `keep` it takes the target's place when the block succeeds."""
    # A name of our own: the file's name may already be as long as the system allows.
    path = target.with_name(f".pysora-{secrets.token_hex(6)}.tmp")
    try:
        yield path
        if keep:
            os.replace(path, target)
    finally:
        path.unlink(missing_ok=True)
