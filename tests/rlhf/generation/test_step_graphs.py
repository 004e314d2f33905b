"""Single tokens by graphs that are played on the CPU: what they say is what the plain forward says, bit by bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from rlhf.errors import ConfigError
from rlhf.generation import sampler as sampling_module
from rlhf.generation import step_graphs
from rlhf.generation.drawing import Sampling
from rlhf.generation.lean_families import NORM_OFFSETS as FAMILIES
from rlhf.generation.sampler import Generation, Sampler
from step3_ppo.hybrid.inference_copy import InferenceCopy
from tests.helpers.tiny import tiny_lm
from tests.pretend import graphs

PROMPTS = [[5, 9, 200, 31], [77], [12, 13, 14, 15, 16, 17, 18, 19, 20], [250, 3], [8, 8, 8, 90, 41]] * 2
# More than two widths of 32 columns; rows end at different lengths.
SAMPLING = Sampling(max_new_tokens=70, stop_token_ids=tuple(range(40, 48)))


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda's graphs on the CPU. The plain sampler takes the batch sizes that one with graphs takes, so that both
    multiply the same matrices."""
    monkeypatch.setattr(step_graphs, "DEVICE", "cpu")
    monkeypatch.setattr(sampling_module, "BATCH_SIZES", sampling_module.GRAPHED_SIZES)
    stand_ins = {
        "CUDAGraph": graphs.Graph, "graph_pool_handle": graphs.pool_handle, "Stream": mock.MagicMock(),
        "current_stream": mock.MagicMock(), "stream": lambda stream: contextlib.nullcontext(),
        "synchronize": lambda: None, "empty_cache": lambda: None,
    }  # fmt: skip
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    monkeypatch.setattr(graphs.Graph, "made", 0)
    monkeypatch.setattr(graphs.Graph, "replayed", 0)


def generate(sampler: Sampler, prompts: list[list[int]] = PROMPTS, sampling: Sampling = SAMPLING) -> Generation:
    return sampler.generate(prompts, sampling, seed=3)


def graphed(model: Any) -> tuple[Sampler, step_graphs.StepGraphs]:
    sampler = Sampler(model, pad_token_id=0, graphs=True)
    assert sampler.graphs is not None
    return sampler, sampler.graphs


def equal(mine: Generation, theirs: Generation) -> None:
    assert torch.equal(mine.ids_BR, theirs.ids_BR)
    assert torch.equal(mine.logprobs_BR, theirs.logprobs_BR)
    assert torch.equal(mine.mask_BR, theirs.mask_BR)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_plain_forward(family: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Ragged prompts, rows that end early, widths that grow. A replay whose column, position, bias or ids were those
    of its capture would draw other tokens."""
    model = tiny_lm(family)
    sampler, own = graphed(model)
    expected = generate(Sampler(model, pad_token_id=0))
    equal(generate(sampler), expected)
    assert len(set(expected.mask_BR.sum(dim=1).tolist())) > 3, "the case must have rows of different lengths"
    assert {width for _, width in own._steps} == {32, 64, 96}
    assert len({rows for rows, _ in own._steps}) > 1
    assert graphs.Graph.made == len(own) and graphs.Graph.replayed > 40
    assert "graphs" not in capfd.readouterr().err


def test_a_second_rollout_on_new_weights_replays_the_same_graphs() -> None:
    """Gemma's norms and the rotary tables are made anew for each rollout, but where the graphs read them."""
    for family in ("llama", "gemma"):
        trained = tiny_lm(family)
        copy = InferenceCopy(trained, dtype=torch.float32, device=torch.device("cpu"), group=None, packed=False)
        copy.refresh()
        sampler, own = graphed(copy.lm)
        first = generate(sampler)
        kept, made = dict(own._steps), graphs.Graph.made
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
        copy.refresh()
        second = generate(sampler)
        equal(second, generate(Sampler(trained, pad_token_id=0)))
        assert not torch.equal(first.logprobs_BR, second.logprobs_BR), "training must have moved the weights"
        assert kept.items() <= dict(own._steps).items()
        generate(sampler)
        assert graphs.Graph.made < 2 * made, "a shape was captured again"


@pytest.mark.parametrize("released", ["both", "weights", "cache"])
def test_graphs_go_where_weights_or_cache_have_moved(released: str) -> None:
    trained = tiny_lm()
    copy = InferenceCopy(trained, dtype=torch.float32, device=torch.device("cpu"), group=None, packed=False)
    copy.refresh()
    sampler, own = graphed(copy.lm)
    generate(sampler)
    before, held = dict(own._steps), []
    if released != "weights":
        sampler.release() if released == "both" else sampler.cache.release()
    if released != "cache":
        copy.release()
    if released == "both":
        assert len(own) == 0
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
            held.append(parameter.clone())  # in the places that are free now
    copy.refresh()
    equal(generate(sampler), generate(Sampler(trained, pad_token_id=0)))
    assert len(own) > 0 and not set(map(id, own._steps.values())) & set(map(id, before.values()))


def test_more_rows_and_longer_prompts_move_the_cache() -> None:
    model = tiny_lm()
    sampler, own = graphed(model)
    generate(sampler, PROMPTS[:4], Sampling(max_new_tokens=20))
    before = list(own._steps.values())
    long = [[*prompt, *range(3, 33)] for prompt in PROMPTS]
    equal(generate(sampler, long), generate(Sampler(model, pad_token_id=0), long))
    assert before and not set(map(id, before)) & set(map(id, own._steps.values()))


def test_nothing_is_captured_where_no_column_is_left_to_try_it_in(capfd: pytest.CaptureFixture[str]) -> None:
    """The second token of the width 32 is its last."""
    prompts = [[*range(3, 33)], [*range(5, 33)]]
    sampler, own = graphed(tiny_lm())
    few = Sampling(max_new_tokens=6, temperature=0)
    equal(generate(sampler, prompts, few), generate(Sampler(sampler.lm, pad_token_id=0), prompts, few))
    assert list(own._steps) == [(2, 64)] and capfd.readouterr().err == ""


def test_prompts_in_groups_of_the_cache_share_graphs() -> None:
    """The second group is laid out in the same memory."""
    sampler, own = graphed(tiny_lm())
    plain = Sampler(sampler.lm, pad_token_id=0)
    for each in (sampler, plain):
        each.limit_cache(5 * each.bytes_per_row(96))
    equal(generate(sampler), generate(plain))
    assert len(sampler._groups(PROMPTS, SAMPLING.max_new_tokens)) == 2
    assert graphs.Graph.made == len(own) > 0, "a shape was captured for each group"


def test_few_graphs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_graphs, "MOST_GRAPHS", 2)
    model = tiny_lm()
    sampler, own = graphed(model)
    equal(generate(sampler), generate(Sampler(model, pad_token_id=0)))
    assert len(own) == 2 < graphs.Graph.made
    assert [width for _, width in own._steps][-1] == 96 and (10, 32) not in own._steps, "the newest are kept"


# --- what cannot be captured, or says something else ------------------------------------------------------------------


def test_nothing_in_the_graph_waits_for_the_gpu(capfd: pytest.CaptureFixture[str]) -> None:
    """A step that asks for a number cannot be captured. It is drawn without graphs, and a line says so."""

    class Asking(torch.nn.SiLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (1.0 if x.max().item() else 0.0)

    model: Any = tiny_lm()
    model.model.layers[1].mlp.act_fn = Asking()
    sampler, own = graphed(model)
    equal(generate(sampler), generate(Sampler(model, pad_token_id=0)))
    assert len(own) == 0 and own.failed and graphs.Graph.replayed == 0
    told = capfd.readouterr().err
    assert told.count("warning") == 1
    assert "inference_cuda_graphs: none could be captured (aten._local_scalar_dense" in told
    assert "sampling goes on without graphs" in told


@pytest.mark.parametrize("name", ["ids_B1", "positions_B1", "bias_B11S", "column_1"])
def test_a_graph_that_does_not_read_its_inputs_is_found_out(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It goes on with the numbers of its capture. Its first replay is compared, and what it wrote into the cache is
    not looked at."""
    captured = step_graphs.StepGraphs._captured

    def deaf(*arguments: Any) -> Any:
        step = captured(*arguments)
        setattr(step, name, getattr(step, name).clone())
        return step

    monkeypatch.setattr(step_graphs.StepGraphs, "_captured", deaf)
    model = tiny_lm()
    sampler, own = graphed(model)
    equal(generate(sampler), generate(Sampler(model, pad_token_id=0)))
    assert own.failed and graphs.Graph.replayed == 1
    told = capfd.readouterr().err
    assert told.count("warning") == 1 and "one of 10 rows and 32 columns is " in told
    equal(generate(sampler), generate(Sampler(model, pad_token_id=0)))
    assert capfd.readouterr().err == ""


def test_an_error_of_the_driver_is_a_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """As when the capture was spoilt: then the error comes at its end."""

    def spoilt(self: Any) -> None:
        ended(self)
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore of it")

    ended: Callable[[Any], None] = graphs.Graph.capture_end
    monkeypatch.setattr(graphs.Graph, "capture_end", spoilt)
    model = tiny_lm()
    equal(generate(graphed(model)[0]), generate(Sampler(model, pad_token_id=0)))
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and "previous error during capture)" in told


def test_a_hidden_state_that_is_no_number_is_far_off() -> None:
    some = torch.ones(2, 4)
    assert float(step_graphs._distance(some, some)) == 0
    assert float(step_graphs._distance(some * torch.tensor([[1.0], [1.1]]), some)) == pytest.approx(0.1)
    broken: Tensor = some * torch.tensor([[1.0], [float("nan")]])
    assert not float(step_graphs._distance(broken, some)) <= 1


def test_what_has_no_graphs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for model, options, message in (
        (tiny_lm("opt"), {}, "inference_cuda_graphs: sampling from a model of type opt cannot be captured as graphs"),
        (tiny_lm(), {"synced": True}, "inference_cuda_graphs: sampling on weights that ZeRO-3 gathers"),
        (tiny_lm(), {"agree": lambda drawn: drawn}, "does not go with inference_tp_size above 1; drop one"),
        (tiny_lm(), {"compiled": True}, "inference_cuda_graphs does not go with inference_compile; drop one of them"),
    ):
        with pytest.raises(ConfigError, match=message):
            Sampler(model, pad_token_id=0, graphs=True, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(step_graphs, "DEVICE", "cuda")
    with pytest.raises(ConfigError, match="inference_cuda_graphs needs a GPU"):
        Sampler(tiny_lm(), pad_token_id=0, graphs=True)
