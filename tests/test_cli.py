"""The command line: what it writes, what it says, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_wan
from PIL import Image
from typer.testing import CliRunner

import pysora
from pysora import evaluation, info, ops
from pysora.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ["--size", "32x16", "--frames", "5", "--steps", "2", "--seed", "3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_wan.saved("wan2.1", tmp_path_factory.mktemp("checkpoint")))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_generate_writes_every_output(model: str, tmp_path: Path) -> None:
    outputs = [tmp_path / f"clip{suffix}" for suffix in (".mp4", ".webm", ".gif", ".png")]
    result = run("generate", "a cat", *QUICK, "--model", model, *(a for path in outputs for a in ("-o", path)))
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [str(path) for path in outputs]
    assert all(path.stat().st_size > 0 for path in outputs)
    assert "Video(32x16, 5 frames, 16 fps), seed 3" in result.stderr


def test_generate_is_the_function(model: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    options = ["--size", "20x13", "--frames", 1, "--steps", 2, "--seed", 5, "--sampler", "euler", "--guidance", 2]
    result = run("generate", "a cat", "--model", model, "--negative-prompt", "dark", *options, "-o", path)
    assert result.exit_code == 0, result.output
    assert "note: size 20x13 was made at 32x16" in " ".join(result.stderr.split())
    video = pysora.generate(
        "a cat",
        model=model,
        size="20x13",
        frames=1,
        steps=2,
        seed=5,
        sampler="euler",
        guidance=2,
        negative_prompt="dark",
    )
    assert isinstance(video, pysora.Video)
    assert np.array_equal(np.asarray(Image.open(path)), video.frames[0])


def test_several_videos_are_numbered(model: str, tmp_path: Path) -> None:
    result = run("generate", "a cat", "a dog", "-n", 2, *QUICK, "--model", model, "-o", tmp_path / "clip.gif")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"clip-{i}.gif" for i in (1, 2, 3, 4)]
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 4


def test_the_prompt_names_the_file(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("generate", "一只猫, on a sill!", *QUICK, "--model", model).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["一只猫-on-a-sill.mp4"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([""], 2, "the prompt is empty"),
        (["a", "--size", "0x9"], 2, "width must lie between"),
        (["a", "--size", "100000x100000"], 2, "TiB of memory"),
        (["a", "--sampler", "ddim"], 2, "sampler must be one of"),
        (["a", "--dtype", "int8"], 2, "dtype must be one of"),
        (["a", "--model", "/nowhere"], 1, "not a checkpoint folder"),
        (["a", "-o", "clip.avi"], 2, "the output must end in"),
        (["a", "-o", "missing/clip.mp4"], 2, "does not exist"),
        (["a", "-o", "x" * 300 + ".mp4"], 1, "cannot be written"),
        (["a", "--steps", "many"], 2, "--steps"),
        ([], 2, "Missing argument"),
    ],
    ids=lambda value: " ".join(value)[:24] if isinstance(value, list) else None,
)
def test_errors_are_one_sentence(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tail = arguments if "--model" in arguments else [*arguments, "--model", model]
    result = run("generate", *tail)
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_a_failed_run_leaves_the_earlier_output(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"earlier")

    def broken(*_: Any, **__: Any) -> None:
        raise pysora.NonFiniteError("step 1 of 2: the latents are not finite")

    monkeypatch.setattr("pysora.pipeline.Pipeline._denoise", broken)
    result = run("generate", "a", *QUICK, "--model", model, "-o", path)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, "pysora: step 1 of 2: the latents are not finite")
    assert path.read_bytes() == b"earlier"


def test_ctrl_c_ends_cleanly(model: str, tmp_path: Path) -> None:
    command = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    command += ["-m", "pysora.cli", "generate", "a", "--model", model, "--size", "64x64", "--frames", "17"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TTY_COMPATIBLE": "1", "FORCE_COLOR": "1"}
    command += ["--steps", "1000", "-o", str(tmp_path / "clip.mp4")]

    def listen() -> None:
        # A shell that runs this suite in the background has it, and so its children, ignore the signal.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, preexec_fn=listen) as process:
        assert process.stderr is not None
        seen, deadline = b"", time.monotonic() + 120
        while b"/1000" not in seen and time.monotonic() < deadline:
            seen += os.read(process.stderr.fileno(), 4096)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130
    assert rest.decode().splitlines()[-1].endswith("pysora: interrupted")
    assert b"Traceback" not in seen + rest
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [[], ["generate"], ["info"], ["bench"], ["eval"], ["train"]], ids=str)
def test_help(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_generates_help_has_examples() -> None:
    assert 'pysora generate "a dog runs in the snow"' in run("generate", "--help").output


def test_info_names_a_backend_or_a_reason_for_every_op() -> None:
    facts = json.loads(run("info", "--json").stdout)
    assert set(facts["ops"]) == set(ops.OPS)
    for op in facts["ops"].values():
        assert {op["backend"], *op["not"]} == set(ops.BACKENDS)
        assert all(op["not"].values())
    text = info.text(facts)
    assert all(name in text for name in (*ops.OPS, pysora.__version__, facts["packages"]["torch"]))


def test_eval_scores_both_languages(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "PROOF_CLIPS", 2)
    result = run("eval", "-n", 2, "--batch", 1, "--steps", 1, "--model", model, "--json")
    report = json.loads(result.stdout)
    assert (report["accuracy"]["clips"], report["english"]["clips"], report["chinese"]["clips"]) == (2, 1, 1)
    # What random weights make is none of the world.
    assert report["accuracy"]["all_four"] == 0.0
    assert result.exit_code == (0 if report["proof_holds"] else 1)


def test_eval_fails_where_the_oracle_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "PROOF_CLIPS", 2)
    monkeypatch.setattr("pysora.worlds.evaluate.Proof.holds", False)
    result = run("eval", "--proof")
    assert result.exit_code == 1
    assert "the oracle does not prove itself" in result.stderr


def test_train_refuses_an_unknown_stage(tmp_path: Path) -> None:
    result = run("train", "everything", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "stage must be one of" in result.stderr


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, pysora; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_resolves() -> None:
    assert all(getattr(pysora, name) is not None for name in pysora.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'sora'"):
        _ = pysora.sora
