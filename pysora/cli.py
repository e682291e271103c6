"""The command line: generate, info, bench, eval, train.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from pysora.media import Video

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    help="Text to video with a diffusion transformer over spacetime patches.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
stderr = Console(stderr=True, highlight=False)


@app.command()
def generate(
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT...", help="What the video shows; several make a batch.")
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output", "-o", help="File to write: .mp4, .webm, .gif or .png (contact sheet); may be repeated."
        ),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder.", show_default="the embedded model")] = None,
    size: Annotated[str | None, typer.Option(help="Width x height in pixels, any.", metavar="WxH")] = None,
    frames: Annotated[int | None, typer.Option(help="Number of frames; 1 is an image.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, 1 to 1000.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How strictly the prompt is followed; 1 is off.")] = None,
    shift: Annotated[float | None, typer.Option(help="Above 1: more of the steps at much noise.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What the video should not show.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides the video.", show_default="random")] = None,
    n: Annotated[int, typer.Option("-n", help="Videos per prompt.")] = 1,
    sampler: Annotated[str | None, typer.Option(help="euler, unipc or dpm++.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16 or fp16.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...")] = None,
    memory: Annotated[str | None, typer.Option(help="Bound above the model, such as 4GB.")] = None,
    preset: Annotated[str, typer.Option(help="exact, or fast: leaves work out and says how wrong that is.")] = "exact",
    max_error: Annotated[
        float | None, typer.Option(help="Change up to which outputs are reused, 0 to 1.", show_default="the preset's")
    ] = None,
    guidance_interval: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="Noise levels with guidance, 0 to 1.", show_default="the preset's"),
    ] = None,
    int8: Annotated[
        bool | None,
        typer.Option("--int8/--no-int8", help="Products in 8 bits.", show_default="the preset's"),
    ] = None,
) -> None:
    """Make a video for each prompt.

    [bold]Examples[/bold]

    pysora generate "a dog runs in the snow" -o dog.mp4 -o dog.gif --seed 1

    pysora generate "一只猫坐在窗台上看日落" --size 192x96 --frames 33 -o cat.mp4

    pysora generate "a red ball bounces on grass" --frames 1 -o ball.png

    pysora generate "a cat jumps on the beach" --preset fast -o jump.mp4

    pysora generate "a car" --model ./Wan2.1-T2V-1.3B-Diffusers --dtype bf16 --memory 8GB -o car.mp4
    """
    with _reported():
        from pysora.approximation import summary
        from pysora.media import check_output

        names = output or [Path(_slug(prompts[0]) + (".png" if frames == 1 else ".mp4"))]
        targets = [_numbered(name, i, len(prompts) * n) for i in range(max(1, len(prompts) * n)) for name in names]
        for target in targets:
            check_output(target)
        from pysora.loading import open_model

        logging.getLogger("pysora").addHandler(_Notes())
        pipeline = open_model(model, dtype, device)
        with _step_bar("denoising") as on_step:
            made = pipeline.generate(
                prompts,
                negative_prompt=negative_prompt,
                seed=seed,
                n=n,
                sampler=sampler,
                memory=memory,
                preset=preset,
                max_error=max_error,
                guidance_interval=guidance_interval,
                int8=int8,
                on_step=on_step,
                size=size,
                frames=frames,
                fps=fps,
                steps=steps,
                guidance=guidance,
                shift=shift,
            )
        videos: list[Video] = made if isinstance(made, list) else [made]
        for i, video in enumerate(videos):
            for target in targets[i * len(names) : (i + 1) * len(names)]:
                typer.echo(video.save(target))
        accounts = [video.meta["approximation"] for video in videos]
        if any(account["int8"] or account["calls"] < account["calls_exact"] for account in accounts):
            stderr.print(summary(accounts))
        stderr.print(f"{videos[0]!r}, seed {videos[0].meta['seed']}")


@app.command()
def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, instruction set, devices, and which backend each op takes and why not the others."""
    with _reported():
        from pysora import info as facts

        typer.echo(json.dumps(facts.gather(), indent=2) if as_json else facts.text(facts.gather()))


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OP]...", help="Ops, and dit, vae, generate.", show_default="all"),
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32 or bf16; may be repeated.", show_default="both")] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(
            help="Length for attention and dit; may be repeated.", show_default="attention 1024 and 4096, dit 1024"
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of all contenders.", show_default="torch's")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    peer: Annotated[
        list[str] | None,
        typer.Option(help="zentorch, openvino or inductor; may be repeated.", show_default="those installed"),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time per contender and case.", show_default="2, quick 0.2")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small shapes, little time.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write JSON; - prints it instead of the table.")
    ] = None,
) -> None:
    """Measure ops and models beside torch, diffusers and other peers that are installed, in alternation.

    Each time stands beside its percent of what this machine can do, measured in the same seconds, and beside the
    error against float64. An interrupted run shows what it has.

    [bold]Examples[/bold]

    pysora bench --quick

    pysora bench spacetime_attention --dtype bf16 --tokens 1024 --tokens 8192

    pysora bench dit vae --threads 2 --json dit.json

    pysora bench --device cuda
    """
    with _reported():
        from pysora import bench as benchmark

        if json_file is not None and not json_file.parent.is_dir():
            raise ValueError(f"--json: there is no folder {str(json_file.parent)!r}")
        size = "quick" if quick else "full"
        rows: list[benchmark.Row] = []
        with benchmark.using_threads(threads), stderr.status("") as status:
            chosen = benchmark.cases(names or None, dtype or tuple(benchmark.DTYPES), size, tokens or ())

            def announce(i: int, total: int, case: benchmark.Case) -> None:
                status.update(f"{i + 1}/{total} {case.op}, {case.label}, {case.dtype}")

            try:
                # Row by row: what an interrupt comes after is kept.
                rows.extend(benchmark.run(chosen, size, seconds, peer, announce, device))
            finally:
                status.stop()
                if rows:
                    _show(benchmark.Report.of(rows, size, device), json_file)


@app.command("eval")
def evaluate(
    n: Annotated[int, typer.Option("-n", "--n", help="Prompts with held-out combinations.")] = 200,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance.")] = None,
    batch: Annotated[int, typer.Option(help="Videos made at a time.")] = 8,
    model: Annotated[Path | None, typer.Option(help="Checkpoint folder.", show_default="the embedded model")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32 or bf16.")] = None,
    proof_only: Annotated[bool, typer.Option("--proof", help="Only prove the oracle.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove the oracle on clips whose truth is known, then score the model on prompts that it never saw.

    Fails where the oracle does not prove itself: its scores would mean nothing.
    """
    with _reported():
        from pysora import evaluation

        with _step_bar("evaluating") as on_step:
            report = evaluation.run(
                n=n,
                model=None if proof_only else (model or "embedded"),
                steps=steps,
                guidance=guidance,
                batch=batch,
                dtype=dtype,
                on_clip=on_step,
            )
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if as_json else str(report))
        if not report.proof.holds:
            _fail("the oracle does not prove itself, so its scores mean nothing", FAILED)


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="vae, text, dit, decoder or export, in this order; or all of them.")],
    out: Annotated[Path, typer.Option(help="Folder of the run: states, loss curves, weights.")] = Path("runs/embedded"),
    minutes: Annotated[float, typer.Option(help="Length of the stage over all its segments.")] = 60.0,
    resume: Annotated[bool, typer.Option(help="Go on from the last state in the folder.")] = False,
    start: Annotated[Path | None, typer.Option(help="Checkpoint folder whose weights the stage begins with.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that train together: sketch, dit and decoder.")] = 1,
) -> None:
    """Train the embedded model, one stage after the other; a stage that was stopped goes on with --resume.

    [bold]Example[/bold]: pysora train vae --minutes 70; pysora train text --minutes 8; pysora train dit --minutes 90;
    pysora train decoder --minutes 10; pysora train export
    """
    with _reported():
        from pysora import training

        typer.echo(training.run(stage, out, minutes, resume, start, workers))


def main() -> None:
    """Run the command line."""
    app(prog_name="pysora")


class _StepsPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f} steps/s")


class _Notes(logging.Handler):
    """Shows the package's notes, such as that a size was cropped."""

    def emit(self, record: logging.LogRecord) -> None:
        stderr.print(f"note: {record.getMessage()}")


@contextlib.contextmanager
def _step_bar(what: str) -> Iterator[Any]:
    """A progress bar; yields its callback (done, total, ...)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _StepsPerSecond(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr) as progress:
        task = progress.add_task(what, total=None)

        def advance(done: int, total: int, *_: Any) -> None:
            progress.update(task, completed=done, total=total)

        try:
            yield advance
        except Exception:
            # A bar that never moved says nothing beside the error.
            progress.update(task, visible=progress.tasks[0].completed > 0)
            raise


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Turn errors into one sentence on stderr and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    except (ValueError, TypeError) as error:
        from pysora.checkpoint import CheckpointError

        _fail(str(error), FAILED if isinstance(error, CheckpointError) else BAD_INPUT)
    except (OSError, ArithmeticError, RuntimeError, MemoryError) as error:
        _fail(str(error) or type(error).__name__, FAILED)


def _show(report: Any, json_file: Path | None) -> None:
    """A benchmark's table on stdout, or its JSON there or in a file."""
    from pysora.bench import table

    if json_file == Path("-"):
        typer.echo(report.to_json())
        return
    console = Console(highlight=False)
    # Where nobody looks at a terminal's width nothing is folded.
    console.width = console.width if console.is_terminal else 180
    console.print(table(report.rows))
    if json_file is not None:
        report.save(json_file)
        typer.echo(json_file)


def _fail(message: str, code: int) -> None:
    typer.echo(f"pysora: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def _slug(prompt: str) -> str:
    """A file name from a prompt, letters of any script."""
    return re.sub(r"\W+", "-", prompt).strip("-").lower()[:40] or "video"


def _numbered(path: Path, i: int, total: int) -> Path:
    return path if total <= 1 else path.with_name(f"{path.stem}-{i + 1}{path.suffix}")


if __name__ == "__main__":
    main()
