"""The columns of the table of families: what the plan says of a tiny model, and what a run of it does.

Each check of a column runs the project's own code on one family and raises `Wrong` where a figure is not that of plain
transformers. `Bench.cells` asks the plan first and turns what happens into cells.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

import step1_sft.main
import step1_sft.spec
import step2_reward.main
import step2_reward.spec
import step3_ppo.main
import step3_ppo.spec
from data.stage_data import demonstrations, preferences
from rlhf.errors import error_lines
from rlhf.generation.drawing import Sampling
from rlhf.generation.sampler import Sampler
from rlhf.hardware import Machine
from rlhf.metrics import read_metrics
from rlhf.models.causal_model import head_logits
from rlhf.models.export import export
from rlhf.models.loading import Loading, backbone, load_causal_lm, load_tokenizer, unwrap
from rlhf.models.reward_model import load_reward_model
from rlhf.stages.problems import stage_problems
from rlhf.stages.spec import StageSpec
from rlhf.template import Template
from scripts.family_configs import FAMILIES, VOCABULARY, Family
from step1_sft.config import SFTConfig
from step1_sft.loss import perplexity
from step2_reward.config import RewardConfig
from step3_ppo.config import PPOConfig
from step3_ppo.experience import Measured
from step3_ppo.passes import ForwardPasses

SFT, REWARD, PPO, LORA = "SFT", "reward", "PPO", "LoRA"
PACKING, PARALLEL, EXPORT, GREEDY = "packing", "tensor parallel", "exact export", "greedy"
COLUMNS = (SFT, REWARD, PPO, LORA, PACKING, PARALLEL, EXPORT, GREEDY)
OK, REFUSED, WRONG, NONE = "ok", "refused", "wrong", "–"

NEAR = 1e-5  # losses and log-probabilities, in nats
EXACT = 2e-6  # logits and scores, relative to the largest one where that is above 1
RANKS = 2  # of the column of tensor parallelism
PAD = 0
PROMPTS = [[5, 9, 200, 31], [77], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22], [250, 3], [8, 8, 8, 90, 41]]
PROBE = [[5, 9, 2, 44, 101, 7, 61, 18, 19, 33, 250, 4, 90], [200, 3, 3, 17, 60, 81, 6, 8, 9, 100, 12, 54, 55]]
ROWS = 12  # of an optimiser step, which takes all rows of a stage
COMMON: dict[str, Any] = {
    "max_prompt_length": 80, "max_response_length": 48, "data_split": "1,1,1", "max_samples": ROWS,
    "max_eval_samples": 6, "eval_ratio": 0.2, "mini_batch_size": ROWS, "micro_batch_size": 4, "max_steps": 1,
    "no_dropout": True, "dtype": "fp32",
}  # fmt: skip


class Wrong(Exception):
    """A figure is not what it should be; the text says which, and by how much it is off."""


@dataclass(frozen=True)
class Cell:
    """What a cell of the table says, and why: the plan's words, or what went wrong."""

    state: str
    why: str = ""


def write_pairs(path: Path) -> str:
    """A JSONL file of questions of several lengths, each with a polite and a rude answer."""
    rows = [
        {
            "prompt": f"What is {i}+{i % 7}{', please' * (i % 3)}?",
            "chosen": f"It is {i + i % 7}{', I think' * (i % 4)}.",
            "rejected": f"{i} no" + "!" * (i % 3),
        }
        for i in range(3 * ROWS + 24)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


class Bench:
    """One family: its folder, and the runs that several columns look at."""

    def __init__(self, family: Family, shared: Path) -> None:
        self.family, self.shared = family, shared
        self.folder = shared / family.name.replace(" ", "_").replace(",", "")
        self.base = self.folder / "base"
        self.results: dict[str, Cell] = {}
        self.in_memory: dict[str, Tensor] = {}  # logits of PROBE when a folder was exported
        pairs = shared / "pairs.jsonl"
        self.pairs = str(pairs) if pairs.exists() else write_pairs(pairs)

    def cells(self, columns: Sequence[str]) -> dict[str, Cell]:
        """The cells of a row but for tensor parallelism, which needs several ranks."""
        with quiet():
            self.family.save(self.base)
            for column in COLUMNS:
                if column in columns and column != PARALLEL:
                    self.results[column] = self._cell(column)
        return self.results

    def _cell(self, column: str) -> Cell:
        if not self.family.causal and column not in (SFT, REWARD, PPO):
            return Cell(NONE)
        try:
            if problems := self.plan(column):
                return Cell(REFUSED, "; ".join(problems))
            if not self.family.causal:
                return Cell(WRONG, "tokens see those behind them, and the plan lets it through")
            checks: dict[str, Callable[[], None]] = {
                SFT: self.sft, REWARD: self.reward, PPO: self.ppo, LORA: self.lora, PACKING: self.packing,
                EXPORT: self.exact_export, GREEDY: self.greedy,
            }  # fmt: skip
            checks[column]()
        except Wrong as wrong:
            return Cell(WRONG, str(wrong))
        except Exception as error:
            return Cell(WRONG, self._said(error))
        return Cell(OK)

    def _said(self, error: BaseException) -> str:
        kind = type(error).__name__
        text = error_lines(error)[0][0]
        return self._without_paths(text if text.startswith(kind) else f"{kind}: {text}")

    def _without_paths(self, text: str) -> str:
        return text.replace(str(self.base), "MODEL").replace(str(self.folder), "RUN").replace(str(self.shared), "")

    # --- the plan -----------------------------------------------------------------------------------------------------

    def plan(self, column: str) -> list[str]:
        """The lines with which the plan refuses a column; none if it lets the column through."""
        spec, config, machine = self._planned(column)
        return [self._without_paths(line) for line in stage_problems(spec, config, machine)]

    def _planned(self, column: str) -> tuple[StageSpec, Any, Machine]:
        one = Machine(ranks=1)
        if column == REWARD:
            return step2_reward.spec.SPEC, self.reward_config("plan"), one
        if column in (PPO, GREEDY):
            return step3_ppo.spec.SPEC, self.ppo_config("plan"), one
        if column == PARALLEL:
            return step3_ppo.spec.SPEC, self.ppo_config("plan", inference_tp_size=RANKS), Machine(ranks=RANKS)
        changes = {PACKING: {"packing": True}, LORA: {"lora_rank": 2}}.get(column, {})
        return step1_sft.spec.SPEC, self.sft_config("plan", **changes), one

    # --- settings and runs --------------------------------------------------------------------------------------------

    def _values(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        return {"output_dir": self.folder / name, "data_path": [self.pairs], **COMMON, **changes}

    def sft_config(self, name: str, **changes: Any) -> SFTConfig:
        return SFTConfig(**self._values(name, {"model": str(self.base), "learning_rate": 1e-3, **changes}))

    def reward_config(self, name: str, **changes: Any) -> RewardConfig:
        return RewardConfig(**self._values(name, {"model": str(self.base), "learning_rate": 1e-3, **changes}))

    def ppo_config(self, name: str, **changes: Any) -> PPOConfig:
        values: dict[str, Any] = {
            "actor_model": str(self.base), "reward_model": str(self.reward_model), "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3, "iterations": 2, "max_steps": None, "rollout_batch_size": 8,
            "mini_batch_size": 8, "max_response_length": 12, "ema_decay": 0.9, "force": True,
            "inference_dtype": "fp32", "inference_copy": "on",
        }  # fmt: skip
        return PPOConfig(**self._values(name, values | changes))

    @property
    def reward_model(self) -> Path:
        """The family's own reward model if it could be trained, else one of a Llama."""
        own = self.results.get(REWARD)
        return self.folder / "reward/model" if own is not None and own.state == OK else llama_reward_model(self.shared)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(str(self.base))

    # --- the columns --------------------------------------------------------------------------------------------------

    def sft(self) -> None:
        """Held-out loss before and after, and the step's loss, are those of plain transformers."""
        config = self.sft_config("sft")
        data = demonstrations(config, Template(self.tokenizer))
        with self._recorded("sft"):
            metrics = step1_sft.main.run(config).metrics
        base, trained = plain_lm(self.base), plain_lm(self.folder / "sft/model")
        (row,) = [row for row in read_metrics(self.folder / "sft/metrics.jsonl") if "sft/loss" in row]
        near("held-out loss before training", math.log(metrics["sft/perplexity_before"]), plain_loss(base, data.held_out))
        near("loss of the first step", row["sft/loss"], plain_loss(base, data.train))
        near("held-out loss after training", math.log(metrics["sft/perplexity"]), plain_loss(trained, data.held_out))
        if row["sft/grad_norm"] == 0.0 or metrics["sft/perplexity"] == metrics["sft/perplexity_before"]:
            raise Wrong("the step changed nothing")

    def reward(self) -> None:
        self._reward("reward")

    def _reward(self, name: str, **changes: Any) -> None:
        """What stage 2 measured on held-out pairs is what its exported folder says in plain transformers."""
        config = self.reward_config(name, **changes)
        rows = preferences(config, Template(self.tokenizer)).held_out
        metrics = step2_reward.main.run(config).metrics
        folder = self.folder / name / "model"
        sequences = [[*row["prompt_ids"], *row[key]] for key in ("chosen_ids", "rejected_ids") for row in rows]
        ours = load_reward_model(Loading(str(folder), self.tokenizer)).scores(sequences)
        if self.family.model_type in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
            plain: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            exact("scores of the exported reward model", ours, plain_scores(plain, sequences))
        chosen, rejected = ours[: len(rows)], ours[len(rows) :]
        near("margin of the exported reward model", metrics["reward/margin"], float((chosen - rejected).mean()))
        near("score_mean of the exported reward model", metrics["score_mean"], float(chosen.mean()))
        loss = float(-F.logsigmoid(chosen - rejected).mean())
        near("held-out loss of the exported reward model", metrics["reward/eval_loss"], loss)

    def ppo(self) -> None:
        """Two iterations: figures finite, and all roles agree on the first rollout."""
        self._ppo("ppo")

    def _ppo(self, name: str, **changes: Any) -> None:
        with self._recorded(name), recorded_measures() as measured:
            step3_ppo.main.run(self.ppo_config(name, **changes))
        rows = read_metrics(self.folder / name / "metrics.jsonl")
        odd = [key for row in rows for key, value in row.items() if not math.isfinite(value)]
        if odd:
            raise Wrong(f"{odd[0]} is not finite")
        near("KL of the first rollout", rows[0]["ppo/kl"], 0.0)
        near("approx_kl of the first step", rows[0]["ppo/approx_kl"], 0.0)
        for number, one in enumerate(measured, start=1):
            sampled = torch.tensor([value for row in one.rollout.sampler_logprobs for value in row])
            of_training = one.old_logprobs_BR[one.response_mask_BR]
            off = float((sampled - of_training).abs().max())
            if not off <= NEAR:
                raise Wrong(f"the sampler's log-probabilities of rollout {number} are off by {off:.1e} nats")

    def lora(self) -> None:
        """Stage 1 with adapters: merged = base + adapter by peft = what was trained. Then stages 2 and 3 with adapters,
        where the plan has let them through without."""
        from peft import PeftModel

        changes: dict[str, Any] = {"lora_rank": 2, "lora_learning_rate": 0.05}
        with self._recorded("lora"):
            step1_sft.main.run(self.sft_config("lora", **changes))
        merged = plain_logits(plain_lm(self.folder / "lora/model"))
        base = plain_lm(self.base)
        if float((plain_logits(base) - merged).abs().max()) < 1e-3:
            raise Wrong("the adapters did nothing")
        adapted = plain_logits(PeftModel.from_pretrained(base, str(self.folder / "lora/model/adapter")))
        exact("merged model against base and adapter by peft", merged, adapted, NEAR)
        exact("merged model against the trained one", merged, self.in_memory["lora/model"], NEAR)
        if self._is_ok(REWARD):
            self._reward("lora_reward", **changes)
        if self._is_ok(PPO):
            self._ppo("lora_ppo", iterations=1, **changes)
            actor = plain_logits(plain_lm(self.folder / "lora_ppo/actor"))
            exact("merged actor against the trained one", actor, self.in_memory["lora_ppo/actor"], NEAR)

    def packing(self) -> None:
        """The loss over all rows is the same with several of them in a row."""
        losses = []
        for packing in (False, True):
            config = self.sft_config("packing", packing=packing)
            rows = demonstrations(config, Template(self.tokenizer), packing=packing).train
            engine = step1_sft.main.build_engine(config, self.tokenizer, total_steps=1)
            losses.append(math.log(perplexity(engine, rows, config, PAD)))
        if len(rows) > ROWS // 2:
            raise Wrong(f"{ROWS} rows became {len(rows)} packs: nothing was tried")
        near("loss of packed rows", losses[1], losses[0])

    def exact_export(self) -> None:
        """The folders of stages 1 and 3 open in plain transformers as the models that were trained."""
        folders = [name for name in ("sft/model", "ppo/actor") if name in self.in_memory]
        if not folders:
            raise Wrong("nothing was exported")
        for name in folders:
            model, info = AutoModelForCausalLM.from_pretrained(self.folder / name, output_loading_info=True)
            if left := [*info["missing_keys"], *info["unexpected_keys"]]:
                raise Wrong(f"{name}: {sorted(left)[0]} is missing or left over")
            exact(f"logits of {name}", plain_logits(model.eval()), self.in_memory[name])

    def greedy(self) -> None:
        """Greedy ids, alone and in a batch of several lengths, are those of transformers' `generate`."""
        model = load_causal_lm(Loading(str(self.base), no_dropout=True))
        free = [plain_greedy(plain_lm(self.base), prompt, 16) for prompt in PROMPTS]
        inner = [token for row in free for token in row[2:-2]]
        stop = max(sorted(set(inner)), key=inner.count)  # some rows end before the others
        expected = [row[: row.index(stop) + 1] if stop in row else row for row in free]
        sampler = Sampler(model, pad_token_id=PAD)
        sampling = Sampling(max_new_tokens=16, temperature=0, stop_token_ids=(stop,))
        together = sampler.generate(PROMPTS, sampling).responses()
        alone = [sampler.generate([prompt], sampling).responses()[0] for prompt in PROMPTS]
        for how, responses in (("in a batch", together), ("alone", alone)):
            off = sum(a != b for a, b in zip(responses, expected, strict=True))
            if off:
                raise Wrong(f"{off} of {len(PROMPTS)} greedy responses {how} differ from transformers' generate")

    def _is_ok(self, column: str) -> bool:
        cell = self.results.get(column)
        return cell is not None and cell.state == OK

    @contextlib.contextmanager
    def _recorded(self, run: str) -> Iterator[None]:
        """While inside, each export of a language model leaves its logits of PROBE as "run/folder"."""

        def recording(model: Any, folder: Path, **options: Any) -> None:
            lm = unwrap(model)
            # the moving average is not what the module holds, and a critic has no logits
            if "full_value" not in options and lm.get_output_embeddings() is not None:
                lm.eval()
                with torch.no_grad():
                    hidden = backbone(model)(input_ids=torch.tensor(PROBE), use_cache=False)[0]
                    self.in_memory[f"{run}/{folder.name}"] = head_logits(lm, hidden)
            export(model, folder, **options)

        with contextlib.ExitStack() as stack:
            for main in (step1_sft.main, step3_ppo.main):
                stack.enter_context(mock.patch.object(main, "export", recording))
            yield


@contextlib.contextmanager
def recorded_measures() -> Iterator[list[Measured]]:
    """While inside, what stage 3 measures of each rollout is kept."""
    kept: list[Measured] = []
    measure = ForwardPasses.measure

    def recording(passes: ForwardPasses, *arguments: Any) -> Measured:
        kept.append(measure(passes, *arguments))
        return kept[-1]

    with mock.patch.object(ForwardPasses, "measure", recording):
        yield kept


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the lines of stages and libraries."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def llama_reward_model(shared: Path) -> Path:
    """A trained reward model for families that have none of their own; made once."""
    bench = Bench(FAMILIES["llama"], shared / "for_all")
    folder = bench.folder / "reward/model"
    if not folder.exists():
        bench.folder.mkdir(parents=True, exist_ok=True)
        bench.family.save(bench.base)
        step2_reward.main.run(bench.reward_config("reward"))
    return folder


# --- what plain transformers says -------------------------------------------------------------------------------------


def plain_lm(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def plain_logits(model: Any) -> Tensor:
    return model(input_ids=torch.tensor(PROBE), use_cache=False).logits.float()


@torch.no_grad()
def plain_loss(model: Any, rows: Any) -> float:
    """Mean cross-entropy over the tokens of the responses, row by row."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
        losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")[row["prompt_length"] - 1 :]
        total, count = total + float(losses.double().sum()), count + len(losses)
    return total / count


@torch.no_grad()
def plain_scores(model: Any, sequences: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, 0] for ids in sequences])


@torch.no_grad()
def plain_greedy(model: Any, prompt: list[int], new: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=PAD,
        eos_token_id=VOCABULARY + 1,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def near(what: str, ours: float, theirs: float) -> None:
    if not abs(ours - theirs) <= NEAR * max(1.0, abs(theirs)):
        raise Wrong(f"{what} is {ours:.6f} instead of {theirs:.6f}")


def exact(what: str, ours: Tensor, theirs: Tensor, tolerance: float = EXACT) -> None:
    off, largest = float((ours - theirs).abs().max()), max(1.0, float(theirs.abs().max()))
    if not off <= tolerance * largest:
        raise Wrong(f"{what}: off by {off:.1e}")
