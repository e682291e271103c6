"""Processes that train one model together."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pysora import training
from pysora.training import workers

# Each worker sees other data; helpers must neither write nor return.
SCRIPT = textwrap.dedent(
    """
    import sys
    from functools import partial
    from pathlib import Path

    import torch
    from pysora.training import workers
    from pysora.training.loop import Run


    def fit(folder, minutes):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        run = Run(folder, model, [torch.optim.SGD(model.parameters(), 0.1)], minutes, log_every=1)

        def step(number):
            (folder / f"threads{workers.rank()}").write_text(str(torch.get_num_threads()))
            x = torch.full((4, 3), 1.0 + workers.rank())
            if number == 1 and workers.rank() and "broken" in folder.name:
                raise ValueError("a helper that breaks")
            return model(x).mean(), {}, 4

        run.train(step)
        workers.dismiss()
        (folder / f"returned{workers.rank()}").touch()


    if __name__ == "__main__":
        folder, count, minutes = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
        torch.set_num_threads(4)
        with workers.group(count, partial(fit, folder, minutes)):
            fit(folder, minutes)
        assert torch.get_num_threads() == 4
    """
)


def train(folder: Path, minutes: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    (folder / "job.py").write_text(SCRIPT)
    command = [sys.executable, "-P", "job.py", str(folder), "2", minutes]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_workers_take_the_mean_of_their_gradients_and_the_leader_writes(tmp_path: Path) -> None:
    done = train(tmp_path / "run", "1e-9")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run"
    # One step: the clock, which the leader keeps, was up after it.
    assert json.loads((folder / "progress.json").read_text())["steps"] == 1
    assert json.loads((folder / "progress.json").read_text())["seen"] == 8
    assert not (folder / "returned1").exists()
    assert (folder / "returned0").exists()
    assert {(folder / f"threads{r}").read_text() for r in (0, 1)} == {"2"}
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    # The gradient of the weight is the mean input, 1 and 2, that of the bias 1; clipped to length 1, in a first step of
    # the warm-up.
    gradient = torch.tensor([1.5, 1.5, 1.5, 1.0])
    step = 0.1 / 100 * gradient / gradient.norm()
    saved = load_file(folder / "state.safetensors")
    torch.testing.assert_close(saved["model/weight"], model.weight.detach() - step[:3])
    torch.testing.assert_close(saved["model/bias"], model.bias.detach() - step[3:])


def test_a_helper_that_breaks_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    done = train(folder, "1")
    assert done.returncode != 0
    assert "a helper that breaks" in done.stderr
    # What was learnt until then is there.
    assert json.loads((folder / "progress.json").read_text())["steps"] == 1


def test_without_a_group_a_process_leads_itself() -> None:
    gradient = torch.tensor([1.0, 2.0])
    workers.mean([gradient])
    assert (workers.rank(), workers.total(3), workers.leading(0.5), gradient.tolist()) == (0, 3, 0.5, [1.0, 2.0])
    workers.dismiss()


@pytest.mark.parametrize(("stage", "count"), [("dit", 0), ("vae", 2)])
def test_workers_that_a_stage_cannot_have(tmp_path: Path, stage: str, count: int) -> None:
    told = f"workers must be 1, or more for sketch, dit, decoder; got {count} for {stage}"
    with pytest.raises(ValueError, match=told):
        training.run(stage, tmp_path, 1, workers=count)
