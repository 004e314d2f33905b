"""The sampler reads the prompts into a key-value cache, then draws one token at a time; finished rows leave the batch.

Rollout, chat and evaluation use it. A row's random numbers depend on (seed, iteration, global row, position) alone. So
its tokens are the same in any batch and on any number of ranks, as long as the logits agree bit for bit.

B rows, U distinct prompts, P prompt tokens (left-padded), R response tokens, S columns of the cache, V vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf.errors import ConfigError
from rlhf.generation.batch import Batch
from rlhf.generation.drawing import Sampling, draw, uniforms
from rlhf.generation.kv_cache import WIDTH_STEP, SamplerCache, round_up
from rlhf.generation.lean_families import unlean
from rlhf.generation.lean_forward import LeanForward, is_lean
from rlhf.generation.state_cache import StateCache, needs_own_cache
from rlhf.generation.step_graphs import StepGraphs, graphs_problem
from rlhf.models.attention import is_served, served
from rlhf.models.causal_model import CausalModel, check_head, head_logits
from rlhf.models.families import sampling_problem
from rlhf.models.loading import backbone, unwrap
from rlhf.training import distributed

# Prompts are read in groups of at most this many tokens, to limit the memory of their activations.
PREFILL_TOKENS = 8192
# Batch sizes between a number and its double, when finished rows leave; a graph must be captured for each.
BATCH_SIZES, GRAPHED_SIZES = 8, 2

# (position, rows that are not finished, their new tokens, log-probabilities, which of them stopped), on the CPU
Drawn = tuple[int, Tensor, Tensor, Tensor, Tensor]


@dataclass
class Generation:
    """Responses: ids [B, R], with pad ids behind the end; the mask [B, R] of what counts, with the stop token; the
    log-probabilities [B, R] of softmax(logits / temperature) in nats; whether a stop token ended the row [B]."""

    ids_BR: Tensor
    mask_BR: Tensor
    logprobs_BR: Tensor
    stopped_B: Tensor

    def responses(self) -> list[list[int]]:
        """The counted ids of each row."""
        return [ids[mask].tolist() for ids, mask in zip(self.ids_BR, self.mask_BR, strict=True)]


class Sampler:
    """Draws responses from a causal language model (a transformers model or a `CausalModel`).

    `synced`: all ranks call the model equally often, as ZeRO-3 needs it: a rank that is done goes on until the others
    are done. `compaction`: finished rows leave the batch. `agree` makes what was drawn the same on ranks that generate
    together. `prefill_tokens`: of the prompts that are read at once. `compiled`: single tokens go through
    torch.compile; `graphs`: they are CUDA graphs (`StepGraphs`). Both raise ConfigError for a model that is not
    Llama-like. The cache keeps its memory, and the graphs theirs, until `release()`.
    """

    def __init__(
        self,
        model: Any,
        *,
        pad_token_id: int,
        synced: bool = False,
        compaction: bool = True,
        agree: Callable[[Tensor], Tensor] | None = None,
        prefill_tokens: int = PREFILL_TOKENS,
        compiled: bool = False,
        graphs: bool = False,
    ) -> None:
        self.lm = unwrap(model.lm if isinstance(model, CausalModel) else model)
        self.backbone = backbone(self.lm)
        self.pad_token_id, self.synced, self.compaction, self.agree = pad_token_id, synced, compaction, agree
        self.prefill_tokens, self._cache_bytes = prefill_tokens, None
        self._cost: tuple[int, ...] | None = None  # bytes of a row, and of each of its tokens
        taken = inspect.signature(self.backbone.forward).parameters
        if problem := sampling_problem(self.lm.config.to_dict()):
            raise ConfigError(f"the model {problem}")
        if not taken.keys() & {"cache_params", "past_key_values"}:
            raise ConfigError(f"nothing can be sampled from a {type(self.lm).__name__}: it has no cache")
        check_head(self.lm)
        self.takes_positions = "position_ids" in taken
        self.cache_name = "cache_params" if "cache_params" in taken else "past_key_values"
        self.lean = is_served(self.lm)
        # under ZeRO-3 weights exist only while their module is called
        is_ours = self.lean and not synced and is_lean(self.lm)
        for setting, asked, done in (
            ("inference_compile", compiled, "compiled"),
            ("inference_cuda_graphs", graphs, "captured as graphs"),
        ):
            if asked and not is_ours:
                config = self.lm.config.to_dict()
                what = unlean(config) or f"of type {config['model_type']} as it is"
                why = "on weights that ZeRO-3 gathers" if synced else f"from a model {what}"
                raise ConfigError(f"{setting}: sampling {why} cannot be {done}; leave it out")
        self.forward = LeanForward(self.lm, compiled=compiled) if is_ours else None
        config = self.lm.config.get_text_config()
        self.keeps_state = needs_own_cache(config)
        self.cache: Any = StateCache(config) if self.keeps_state else SamplerCache(int(config.num_hidden_layers))
        self.graphs: StepGraphs | None = None
        if graphs and self.forward is not None:
            if problem := graphs_problem(self.device, compiled=compiled, together=agree is not None):
                raise ConfigError(f"inference_cuda_graphs {problem}")
            self.graphs = StepGraphs(self.forward, self.cache)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.lm.parameters()).device

    def limit_cache(self, most_bytes: int) -> None:
        """Limit the cache's bytes: prompts are then taken in groups of similar length (not when `synced`)."""
        self._cache_bytes = most_bytes

    def release(self) -> None:
        """Give back the memory of the cache and of the graphs, which are made for it."""
        if self.graphs is not None:
            self.graphs.drop()
        self.cache.release()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seed: int = 0,
        iteration: int = 0,
        rows: Sequence[int] | None = None,
    ) -> Generation:
        """One response to each prompt (a list of ids). `rows` are the prompts' global numbers, by default 0, 1, …"""
        count, width = len(prompts), sampling.max_new_tokens
        ids_BR = torch.full((count, width), self.pad_token_id)
        mask_BR = torch.zeros((count, width), dtype=torch.bool)
        logprobs_BR = torch.zeros((count, width))
        stopped_B = torch.zeros(count, dtype=torch.bool)
        uniforms_BR = uniforms(seed, iteration, range(count) if rows is None else rows, width)
        for group in self._groups(prompts, width):
            own = [prompts[i] for i in group.tolist()]
            for position, places, tokens, logprobs, stopped in self._steps(own, sampling, uniforms_BR[group]):
                alive = group[places]
                ids_BR[alive, position], logprobs_BR[alive, position] = tokens, logprobs
                mask_BR[alive, position] = True
                stopped_B[alive[stopped]] = True
        return Generation(ids_BR, mask_BR, logprobs_BR, stopped_B)

    def stream(self, prompt: Sequence[int], sampling: Sampling, *, seed: int = 0) -> Iterator[int]:
        """The ids of one response as they are drawn, with the stop token."""
        for _, _, tokens, _, _ in self._steps([prompt], sampling, uniforms(seed, 0, [0], sampling.max_new_tokens)):
            yield int(tokens[0])

    def _groups(self, prompts: Sequence[Sequence[int]], width: int) -> list[Tensor]:
        """Which prompts go through the model together: all, or as many as the cache has room for."""
        everything = torch.arange(len(prompts))
        if self.synced or self._cache_bytes is None or not prompts:
            return [everything]
        lengths = torch.tensor([len(p) for p in prompts])
        order = lengths.argsort(descending=True, stable=True)
        groups, start = [], 0
        while start < len(order):
            capacity = round_up(int(lengths[order[start]]) + width, WIDTH_STEP)
            size = max(self._cache_bytes // max(self.bytes_per_row(capacity), 1), 1)
            groups.append(order[start : start + size])
            start += size
        return groups if len(groups) > 1 else [everything]

    def bytes_per_row(self, tokens: int) -> int:
        """Memory of a row of `tokens` tokens in the cache, on this rank. It is measured once, on a row of one token:
        what a family keeps of a token can be told from no config."""
        if self._cost is None:
            with self._ready(), torch.no_grad():
                self.cache.reserve(1, 1, 0)
                if self.forward is not None:
                    self.forward.begin(1)
                self._read([(self.pad_token_id,)], 0, 1)
            self._cost = tuple(self.cache.cost())
            self.cache.release()
        return self._cost[0] + tokens * self._cost[1]

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """While inside, the model is in eval mode and has the sampler's attention, if it can have it."""
        was_training = self.lm.training
        self.lm.eval()
        try:
            with served(self.lm) if self.lean else contextlib.nullcontext():
                yield
        finally:
            self.lm.train(was_training)

    def _steps(self, prompts: Sequence[Sequence[int]], sampling: Sampling, uniforms_BR: Tensor) -> Iterator[Drawn]:
        finished_B = torch.zeros(len(prompts), dtype=torch.bool)
        if not prompts:
            if not self.synced:
                return
            prompts, uniforms_BR = [[self.pad_token_id]], torch.zeros((1, sampling.max_new_tokens), dtype=torch.float64)
            finished_B = torch.ones(1, dtype=torch.bool)
        with self._ready():
            yield from self._decode(prompts, finished_B, sampling, uniforms_BR)

    @torch.no_grad()
    def _decode(
        self, prompts: Sequence[Sequence[int]], finished_B: Tensor, sampling: Sampling, uniforms_BR: Tensor
    ) -> Iterator[Drawn]:
        device, width = self.device, sampling.max_new_tokens
        stop_ids = torch.tensor(sampling.stop_token_ids, dtype=torch.long, device=device)
        longest = max(len(p) for p in prompts)
        self.cache.reserve(len(prompts), longest, width)
        if self.forward is not None:
            self.forward.begin(longest + width)
        batch = self._prefill(prompts, finished_B, uniforms_BR.to(device), longest)
        if self.graphs is not None:
            self.graphs.check()
        for position in range(width):
            tokens_B, logprobs_B = draw(
                head_logits(self.lm, batch.hidden_BD),
                batch.random_BR[:, position],
                sampling,
                forbidden=stop_ids if position < sampling.min_new_tokens else None,
            )
            drawn_3B = torch.stack([tokens_B, logprobs_B, torch.isin(tokens_B, stop_ids)]).double()
            if self.agree is not None:
                drawn_3B = self.agree(drawn_3B)
                tokens_B = drawn_3B[0].long()
            drawn_3B = drawn_3B.cpu()
            stopped_B = drawn_3B[2] > 0
            live = ~batch.finished_B
            if bool(live.any()):
                yield position, batch.row_B[live], drawn_3B[0, live].long(), drawn_3B[1, live].float(), stopped_B[live]
            batch.finished_B = batch.finished_B | stopped_B
            if position + 1 == width or self._all_done(bool(batch.finished_B.all())):
                return
            if self.compaction:
                tokens_B = self._compact(batch, tokens_B, longest + position)
            self._step(batch, tokens_B, longest + position)

    def _prefill(self, prompts: Sequence[Sequence[int]], finished_B: Tensor, random_BR: Tensor, longest: int) -> Batch:
        """Read the prompts into the cache, equal ones only once, long ones first, in groups of like length."""
        device, cache = self.device, self.cache
        places: dict[tuple[int, ...], int] = {}
        for prompt in sorted((tuple(p) for p in prompts), key=len, reverse=True):
            places.setdefault(prompt, len(places))
        distinct = list(places)
        source_B = torch.tensor([places[tuple(p)] for p in prompts], device=device)
        hidden = []
        start = 0
        while start < len(distinct):
            length = len(distinct[start])
            # `synced`: all ranks call the model equally often, so there is only one group
            at_once = self.synced or self.keeps_state
            size = len(distinct) if at_once else max(self.prefill_tokens // max(length, 1), 1)
            hidden.append(self._read(distinct[start : start + size], start, longest))
            start += size
        hidden_UD = torch.cat(hidden)
        lengths_B = torch.tensor([len(p) for p in prompts], device=device)
        if len(distinct) < len(prompts) or source_B.tolist() != list(range(len(prompts))):
            cache.rearrange(source_B, longest)
        columns = torch.arange(cache.capacity, device=device)
        mask_BS = (columns >= longest - lengths_B[:, None]) & (columns < longest)
        bias = None
        if self.lean:
            bias = torch.zeros(mask_BS.shape, dtype=hidden_UD.dtype, device=device)
            bias = bias.masked_fill_(~mask_BS, float("-inf"))[:, None, None]
        return Batch(torch.arange(len(prompts)), finished_B, hidden_UD[source_B], lengths_B, random_BR, mask_BS, bias)

    def _read(self, prompts: list[tuple[int, ...]], first_row: int, longest: int) -> Tensor:
        """Prompts of one group into the cache's rows from `first_row`; hidden states of their last tokens [b, D]."""
        width = len(prompts[0])
        ids = torch.full((len(prompts), width), self.pad_token_id)
        mask = torch.zeros((len(prompts), width), dtype=torch.bool)
        for index, prompt in enumerate(prompts):
            ids[index, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            mask[index, width - len(prompt) :] = True
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0).to(self.device)
        attention: Tensor | None = mask
        if self.lean:
            attention = None
            if not bool(mask.all()):
                causal = torch.ones((width, width), dtype=torch.bool).tril()
                # Padding attends to itself. With nothing to attend to it would be NaN, which spreads by the cache.
                attention = (causal & mask[:, None, :] | torch.eye(width, dtype=torch.bool))[:, None]
        cache = self.cache
        cache.rows, cache.start, cache.seen = slice(first_row, first_row + len(prompts)), longest - width, 0
        cache.prefilling = True
        return self._forward(ids.to(self.device), attention, positions)

    def _step(self, batch: Batch, tokens_B: Tensor, column: int) -> None:
        """Send one token of each row through the model; its keys and values go to `column`."""
        cache = self.cache
        cache.rows, cache.start, cache.seen = slice(0, len(tokens_B)), column, column
        cache.prefilling = False
        width = cache.show(column + 1, len(tokens_B))
        if batch.bias_B11S is not None:
            cache.shown = width
            batch.bias_B11S[..., column] = 0
            attention = batch.bias_B11S[..., : cache.shown]
        else:
            cache.shown = column + 1
            batch.mask_BS[:, column] = True
            attention = batch.mask_BS[:, : cache.shown]
        ids, positions = tokens_B[:, None], batch.position_B[:, None]
        step = self._forward if self.graphs is None else self.graphs
        batch.hidden_BD = step(ids, attention, positions)
        batch.position_B = batch.position_B + 1

    def _compact(self, batch: Batch, tokens_B: Tensor, columns: int) -> Tensor:
        """Take finished rows out of batch and cache. Returns the tokens left."""
        keep = batch.left(BATCH_SIZES if self.graphs is None else GRAPHED_SIZES)
        if keep is None:
            return tokens_B
        on_device = keep.to(tokens_B.device)
        self.cache.rearrange(on_device, columns)
        batch.keep(keep)
        return tokens_B[on_device]

    def _forward(self, ids: Tensor, attention: Tensor | None, positions: Tensor) -> Tensor:
        """Hidden states of the last column: [B, D]."""
        attention = attention if attention is None else attention.to(self.device)
        if self.forward is not None:
            return self.forward(ids, positions, self.cache, attention)
        extra: dict[str, Any] = {"position_ids": positions} if self.takes_positions else {}
        if self.keeps_state:
            extra[self.cache_name] = self.cache.own
            if self.cache_name == "cache_params" and not self.cache.prefilling:
                attention = None  # such a model masks its input, not what it looks back on
        else:
            extra["past_key_values"] = self.cache
        return self.backbone(input_ids=ids, attention_mask=attention, use_cache=True, **extra)[0][:, -1]

    def _all_done(self, done: bool) -> bool:
        return done if not self.synced else distributed.max_over_ranks(not done) == 0
