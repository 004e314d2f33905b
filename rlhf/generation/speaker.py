"""A model that answers, with its tokenizer, template, stops and sampler. Chat and evaluate use it.

Torch is imported only when a model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import ModelError
from rlhf.generation.streaming import Stops, find_stops
from rlhf.models.names import check_model, check_speaker, model_limit, resolve
from rlhf.template import Message, Template

if TYPE_CHECKING:
    from rlhf.generation.sampler import Sampler


@dataclass(frozen=True)
class Speaker:
    """A loaded model. `label` is its short name for people, `name` its folder or hub name, `summary` a line about it.
    `limit` is the longest sequence in tokens that its positions allow, None for any."""

    label: str
    name: str
    template: Template
    sampler: Sampler
    stops: Stops
    limit: int | None
    summary: str

    def has_system_turn(self) -> bool:
        """Whether the template writes a system turn. Some templates refuse it, some leave it out."""
        messages: list[Message] = [{"role": "system", "content": "zqsystem"}, {"role": "user", "content": "x"}]
        try:
            return "zqsystem" in self.template.render(messages)
        except ModelError:
            return False


def problems(name: str, *, flag: str, trust_remote_code: bool = False) -> list[str]:
    """Why a model cannot answer, one line for each reason, found without torch; `flag` names the option."""
    folder = Path(resolve(name))
    if folder.is_dir() and not (folder / "config.json").exists():
        inside = [found.parent for found in sorted(folder.glob("*/*/config.json"), reverse=True)]
        chat = [str(found) for found in inside if not check_model(str(found), flag="", kind="language")]
        if chat:
            return [f"{flag} {name}: is the folder of a run; its chat models are {', '.join(chat)}"]
    return check_speaker(name, flag=flag, trust_remote_code=trust_remote_code)


def load_speaker(name: str, *, label: str, dtype: str = "auto", trust_remote_code: bool = False) -> Speaker:
    """Load a model that answers, on this process's device. Raises ModelError, also for a model that does not fit on the
    GPU, and ConfigError for a dtype that the device does not have and for a GPU that torch cannot use."""
    import torch
    from transformers.utils import logging

    from rlhf.training.distributed import device, refuse_unusable_gpus

    if not torch.accelerator.is_available():
        refuse_unusable_gpus()
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # without this DeepSpeed prints a warning
    from rlhf.generation.sampler import Sampler
    from rlhf.models.end_tokens import listed
    from rlhf.models.loading import Loading, dtype_of, load_causal_lm, load_tokenizer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    model = load_causal_lm(Loading(name, tokenizer, dtype_of(dtype), trust_remote_code=trust_remote_code))
    _refuse_too_large(model, name)
    model = model.to(device())  # type: ignore[arg-type]
    template = Template(tokenizer)
    limit = model_limit(model.config.to_dict())
    return Speaker(
        label=label,
        name=resolve(name),
        template=template,
        sampler=Sampler(model, pad_token_id=int(tokenizer.pad_token_id)),  # type: ignore[arg-type]
        stops=find_stops(template, more_end_ids=listed(model.generation_config)),
        limit=limit,
        summary=_summary(model, limit),
    )


def _refuse_too_large(model: Any, name: str) -> None:
    """Raise ModelError where the weights need more memory than the GPU has: they are not spread over several."""
    from rlhf.training.distributed import free_memory, on_gpu

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    if on_gpu() and size > free_memory():
        raise ModelError(
            f"{name}: its weights take {size / 1e9:.1f} GB in {str(model.dtype)[6:]}, and the GPU has "
            f"{free_memory() / 1e9:.1f} GB free; a model answers from one GPU, so use a larger or an idle one, or "
            "main memory (DS_ACCELERATOR=cpu)"
        )


def _summary(model: Any, limit: int | None) -> str:
    """`LlamaForCausalLM, 134.5M parameters, float32 on cpu, context 8192 tokens`."""
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    parts = [type(model).__name__, f"{millions:,.1f}M parameters", f"{str(model.dtype)[6:]} on {model.device.type}"]
    return ", ".join([*parts, f"context {limit} tokens"] if limit else parts)


def labels(names: Sequence[str]) -> list[str]:
    """A short name for each model: the end of its path, long enough to tell the models apart."""
    parts = [Path(resolve(name)).parts or (name,) for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(p[-length:]) for p in parts]
        if len(set(short)) == len(set(parts)):
            break
    return short if len(set(short)) == len(short) else [f"{s} ({i})" for i, s in enumerate(short, start=1)]
