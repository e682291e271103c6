"""Peers that compile a function take its arguments and give its results in its own form."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pysora.bench import peers


def fake_openvino() -> types.SimpleNamespace:
    """The calls of OpenVINO that are used, with torch behind them: the results are numbered."""

    class Request:
        def __init__(self, model: nn.Module) -> None:
            self.model = model

        def infer(self, arrays: Sequence[np.ndarray], share_inputs: bool, share_outputs: bool) -> dict[int, np.ndarray]:
            results = self.model(*(torch.from_numpy(array) for array in arrays))
            results = (results,) if isinstance(results, Tensor) else results
            return {i: result.numpy() for i, result in enumerate(results)}

    def compile_model(model: nn.Module, device: str, settings: dict[str, Any]) -> types.SimpleNamespace:
        assert device == "CPU" and settings["INFERENCE_PRECISION_HINT"] == "bf16"
        return types.SimpleNamespace(create_infer_request=lambda: Request(model))

    return types.SimpleNamespace(convert_model=lambda model, example_input: model, compile_model=compile_model)


@pytest.mark.parametrize(
    "function", [lambda a, b: a @ b, lambda a, b: (a + b, a - b)], ids=["one result", "two results"]
)
def test_openvino_gives_results_as_the_function_does(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]
) -> None:
    monkeypatch.setattr(peers.importlib, "import_module", lambda name: fake_openvino())
    sets = [(torch.randn(4, 4).bfloat16(), torch.randn(4, 4).bfloat16()) for _ in range(2)]
    call = peers.openvino(function, sets, "bf16")
    for i in range(3):
        a, b = sets[i % 2]
        torch.testing.assert_close(call(i), function(a.float(), b.float()))
