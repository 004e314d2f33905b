"""Layers that go through torch.compile train as they did before.

The last step, the compiler's own kernels, is left out: it takes half a minute and a C++ compiler.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlhf.errors import ConfigError
from rlhf.stage_config import stage_engine_problems
from rlhf.training.engine import enable_activation_checkpointing
from step1_sft.config import SFTConfig
from tests.helpers import engines
from tests.helpers.tiny import tiny_lm


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    compile_, calls = torch.compile, []

    def without_kernels(function: Any, **options: Any) -> Any:
        if function.__name__ == "_call_impl":  # of a module
            calls.append(function)
        return compile_(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", without_kernels)
    torch._dynamo.reset()
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("zero_stage", [0, 2])
def test_compiled_layers_train_the_same(one_rank: None, traced: list[Any], family: str, zero_stage: int) -> None:
    """In micro-batches of different sizes and lengths, through one graph for all layers."""
    plain = engines.engine(zero_stage, model=tiny_lm(family))
    wanted = engines.steps(plain, 3)
    compiled = engines.engine(zero_stage, model=tiny_lm(family), compile=True)
    assert engines.steps(compiled, 3) == pytest.approx(wanted, rel=1e-5)
    assert engines.furthest(engines.weights(compiled), engines.weights(plain)) < 2e-6
    assert len(traced) == plain.module.config.num_hidden_layers


@pytest.mark.slow
def test_compiled_layers_with_activation_checkpointing(one_rank: None, traced: list[Any]) -> None:
    wanted = engines.steps(engines.engine(1), 4)
    model = tiny_lm()
    enable_activation_checkpointing(model)
    assert engines.steps(engines.engine(1, model=model, compile=True), 4) == pytest.approx(wanted, rel=1e-5)
    assert traced


def test_what_cannot_be_compiled_is_refused(one_rank: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="use ZeRO stages 0 to 2"):
        engines.engine(3, compile=True)
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = stage_engine_problems(SFTConfig(compile=True, zero_stage=3), "s", gpus=False, bf16=False)
    assert [problem.partition(":")[0] for problem in found] == ["s.zero_stage=3", "s.compile"]
    assert "no C++ compiler (no-such-compiler)" in found[1]
    assert not stage_engine_problems(SFTConfig(compile=True), "s", gpus=True, bf16=True)
