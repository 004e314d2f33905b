"""The columns of the table of families, and the cells of a row.

Each check of a column runs the project's own code on one tiny model and raises `Wrong` where a figure is not that of
plain transformers. `cells` asks the plan first and turns what happens into cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

import step1_sft.main
import step2_reward.main
import step3_ppo.main
from data.stage_data import demonstrations, preferences
from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Sampler
from rlhf.metrics import read_metrics
from rlhf.models.causal_model import CausalModel
from rlhf.models.loading import Loading, load_causal_lm
from rlhf.models.reward_model import load_reward_model
from rlhf.template import Template
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine
from scripts.family_bench import (
    COLUMNS,
    EXPORT,
    GREEDY,
    LORA,
    NONE,
    OK,
    PACKING,
    PARALLEL,
    PPO,
    RANKS,
    REFUSED,
    REWARD,
    ROWS,
    SFT,
    WRONG,
    Bench,
    Cell,
    recorded_measures,
    recorded_outputs,
    sampled,
)
from scripts.family_plain import (
    NEAR,
    NEW,
    PAD,
    PROMPTS,
    Wrong,
    close,
    exact,
    near,
    plain_greedy,
    plain_lm,
    plain_logits,
    plain_logprobs,
    plain_loss,
    plain_scores,
    quiet,
    response_logprobs,
)
from step1_sft.loss import micro_batches, token_loss_sum
from step3_ppo.hybrid.engine import HybridEngine


def cells(bench: Bench, columns: Sequence[str] = COLUMNS) -> dict[str, Cell]:
    """The cells of a row. Tensor parallelism is missing where the plan allows it: it needs several ranks."""
    with quiet():
        bench.family.save(bench.base)
        for column in (column for column in COLUMNS if column in columns):
            cell = without_a_run(bench, column)
            if cell is None and column != PARALLEL:
                cell = tried(bench, column)
            if cell is not None:
                bench.cells[column] = cell
    return bench.cells


def without_a_run(bench: Bench, column: str) -> Cell | None:
    """The cell of a column that needs no run, or None."""
    if not bench.family.causal and column not in (SFT, REWARD, PPO):
        return Cell(NONE)
    try:
        if problems := bench.plan(column):
            return Cell(REFUSED, "; ".join(problems))
    except Exception as error:
        return Cell(WRONG, f"the plan: {bench.said(error)}")
    return None if bench.family.causal else Cell(WRONG, "tokens see those behind them, and the plan lets it through")


def tried(bench: Bench, column: str) -> Cell:
    """The cell of a column that the plan allows."""
    try:
        CHECKS[column](bench)
    except Wrong as wrong:
        return Cell(WRONG, str(wrong))
    except Exception as error:
        return Cell(WRONG, bench.said(error))
    return Cell(OK)


# --- the columns ------------------------------------------------------------------------------------------------------


def sft(bench: Bench) -> None:
    """Held-out loss before and after, and the step's loss, are those of plain transformers."""
    config = bench.sft_config("sft")
    data = demonstrations(config, Template(bench.tokenizer))
    with bench.recorded("sft"):
        metrics = step1_sft.main.run(config).metrics
    base, trained = bench.base_lm, plain_lm(bench.folder / "sft/model")
    (row,) = [row for row in read_metrics(bench.folder / "sft/metrics.jsonl") if "sft/loss" in row]
    near("held-out loss before training", math.log(metrics["sft/perplexity_before"]), plain_loss(base, data.held_out))
    near("loss of the first step", row["sft/loss"], plain_loss(base, data.train))
    near("held-out loss after training", math.log(metrics["sft/perplexity"]), plain_loss(trained, data.held_out))
    if row["sft/grad_norm"] == 0.0 or metrics["sft/perplexity"] == metrics["sft/perplexity_before"]:
        raise Wrong("the step changed nothing")


def reward(bench: Bench, name: str = "reward", **changes: Any) -> None:
    """What stage 2 measured on held-out pairs is what its exported folder says in plain transformers."""
    config = bench.reward_config(name, **changes)
    rows = preferences(config, Template(bench.tokenizer)).held_out
    metrics = step2_reward.main.run(config).metrics
    folder = bench.folder / name / "model"
    sequences = [[*row["prompt_ids"], *row[key]] for key in ("chosen_ids", "rejected_ids") for row in rows]
    ours = load_reward_model(Loading(str(folder), bench.tokenizer)).scores(sequences)
    if bench.family.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        plain: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        scores = partial(plain_scores, sequences=sequences)
        exact("scores of the exported reward model", ours, scores(plain), plain, scores)
    chosen, rejected = ours[: len(rows)], ours[len(rows) :]
    near("margin of the exported reward model", metrics["reward/margin"], float((chosen - rejected).mean()))
    near("score_mean of the exported reward model", metrics["score_mean"], float(chosen.mean()))
    loss = float(-F.logsigmoid(chosen - rejected).mean())
    near("held-out loss of the exported reward model", metrics["reward/eval_loss"], loss)


def ppo(bench: Bench, name: str = "ppo", **changes: Any) -> None:
    """Iterations of stage 3: figures finite, all roles agree at the start, the sampler says what the trained model
    says."""
    with bench.recorded(name), recorded_measures() as measured:
        step3_ppo.main.run(bench.ppo_config(name, **changes))
    rows = read_metrics(bench.folder / name / "metrics.jsonl")
    odd = [key for row in rows for key, value in row.items() if not math.isfinite(value)]
    if odd:
        raise Wrong(f"{odd[0]} is not finite")
    near("KL of the first rollout", rows[0]["ppo/kl"], 0.0)
    near("approx_kl of the first step", rows[0]["ppo/approx_kl"], 0.0)
    for number, one in enumerate(measured, start=1):
        old = one.old_logprobs_BR[one.response_mask_BR]
        close(f"the sampler's log-probabilities of rollout {number}", sampled(one), old)
    rows = zip(measured[0].rollout.prompts, measured[0].rollout.responses, strict=True)
    plain = torch.cat([response_logprobs(bench.base_lm, prompt, response) for prompt, response in rows])
    close("against plain transformers, the sampler's log-probabilities of rollout 1", sampled(measured[0]), plain)


def lora(bench: Bench) -> None:
    """Stage 1 with adapters: merged = base + adapter by peft = what was trained. Then stages 2 and 3 with adapters,
    where the plan has let them through without."""
    from peft import PeftModel

    changes: dict[str, Any] = {"lora_rank": 2, "lora_learning_rate": 0.05}
    with bench.recorded("lora"):
        step1_sft.main.run(bench.sft_config("lora", **changes))
    plain = plain_lm(bench.folder / "lora/model")
    merged = plain_logits(plain)
    base = plain_lm(bench.base)
    if float((plain_logits(base) - merged).abs().max()) < 1e-3:
        raise Wrong("the adapters did nothing")
    adapted = plain_logits(PeftModel.from_pretrained(base, str(bench.folder / "lora/model/adapter")))
    exact("merged model against base and adapter by peft", merged, adapted, plain, plain_logits, NEAR)
    exact("merged model against the trained one", bench.in_memory["lora/model"], merged, plain, plain_logits, NEAR)
    if bench.is_ok(REWARD):
        reward(bench, "lora_reward", **changes)
    if bench.is_ok(PPO):
        ppo(bench, "lora_ppo", iterations=1, **changes)
        plain, trained = plain_lm(bench.folder / "lora_ppo/actor"), bench.in_memory["lora_ppo/actor"]
        exact("merged actor against the trained one", trained, plain_logits(plain), plain, plain_logits, NEAR)


def packing(bench: Bench) -> None:
    """Log-probabilities in packed rows are those of their demonstrations, one by one, in plain transformers."""
    config = bench.sft_config("packing", packing=True, train_on_prompt=True)
    rows = demonstrations(config, Template(bench.tokenizer), packing=True).train
    assert len(rows) < ROWS, "no pack holds two demonstrations"
    engine = step1_sft.main.build_engine(config, bench.tokenizer, total_steps=1)
    engine.train(False)
    for index in range(len(rows)):
        (batch,) = micro_batches(rows, [index], config, PAD)
        with torch.no_grad(), recorded_outputs(engine) as outputs:
            token_loss_sum(engine, batch)
        parts = torch.tensor(rows[index]["input_ids"]).split(rows[index]["lengths"])
        expected = torch.cat([plain_logprobs(bench.base_lm, ids) for ids in parts])
        close("log-probabilities in a packed row", outputs[0].logprobs_N, expected)


def parallel(bench: Bench) -> None:
    """Logits and greedy responses of the inference copy, cut over ranks, are those of the whole model. All ranks
    call it."""
    config = bench.ppo_config("parallel", inference_tp_size=RANKS, reward_model="")
    train = TrainEngine(
        CausalModel(load_causal_lm(Loading(str(bench.base), no_dropout=True))),
        config,
        learning_rate=config.actor_learning_rate,
        total_steps=1,
        zero_stage=1,
        dtype=torch.float32,
        micro_batch_size=1,
        where="the table of families",
    )
    hybrid = HybridEngine(train, pad_token_id=PAD, tensor_parallel=RANKS, inference_dtype="fp32")
    whole = bench.base_lm
    mine = list(range(distributed.rank(), len(PROMPTS), RANKS))
    sampling = Sampling(max_new_tokens=NEW, temperature=0)
    with hybrid.generating() as sampler:
        assert hybrid.copy is not None
        cut = plain_logits(hybrid.copy.lm)
        responses = sampler.generate([PROMPTS[row] for row in mine], sampling, rows=mine).responses()
    exact("logits of the copy on two ranks", cut, plain_logits(whole), whole, plain_logits, NEAR)
    expected = Sampler(whole, pad_token_id=PAD).generate([PROMPTS[row] for row in mine], sampling).responses()
    if responses != expected:
        raise Wrong("greedy responses of the copy on two ranks differ from those of the whole model")


def exact_export(bench: Bench) -> None:
    """The folders of stages 1 and 3 open in plain transformers as the models that were trained."""
    folders = [name for name in ("sft/model", "ppo/actor") if name in bench.in_memory]
    if not folders:
        raise Wrong("nothing was exported")
    for name in folders:
        loaded: Any = AutoModelForCausalLM.from_pretrained(bench.folder / name, output_loading_info=True)
        model, info = loaded
        if left := [*info["missing_keys"], *info["unexpected_keys"]]:
            raise Wrong(f"{name}: {sorted(left)[0]} is missing or left over")
        exact(f"logits of {name}", bench.in_memory[name], plain_logits(model.eval()), model, plain_logits)


def greedy(bench: Bench) -> None:
    """Greedy ids, alone and in a batch of several lengths, are those of transformers' `generate`."""
    model = load_causal_lm(Loading(str(bench.base), no_dropout=True))
    free = [plain_greedy(bench.base_lm, prompt, NEW) for prompt in PROMPTS]
    inner = [token for row in free for token in row[2:-2]]
    stop = max(sorted(set(inner)), key=inner.count)  # some rows end before the others
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in free]
    sampler = Sampler(model, pad_token_id=PAD)
    sampling = Sampling(max_new_tokens=NEW, temperature=0, stop_token_ids=(stop,))
    together = sampler.generate(PROMPTS, sampling).responses()
    alone = [sampler.generate([prompt], sampling).responses()[0] for prompt in PROMPTS]
    for how, responses in (("in a batch", together), ("alone", alone)):
        off = sum(a != b for a, b in zip(responses, expected, strict=True))
        if off:
            raise Wrong(f"{off} of {len(PROMPTS)} greedy responses {how} differ from transformers' generate")
    # a model that repeats one token gives the right ids whatever the sampler keeps of the past
    drawn = sampler.generate(PROMPTS, Sampling(max_new_tokens=NEW))
    plain = [response_logprobs(bench.base_lm, p, r) for p, r in zip(PROMPTS, drawn.responses(), strict=True)]
    close("the log-probabilities of drawn tokens", drawn.logprobs_BR[drawn.mask_BR], torch.cat(plain))


CHECKS: dict[str, Callable[[Bench], None]] = {
    SFT: sft,
    REWARD: reward,
    PPO: ppo,
    LORA: lora,
    PACKING: packing,
    PARALLEL: parallel,
    EXPORT: exact_export,
    GREEDY: greedy,
}
