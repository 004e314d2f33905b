"""Model names: aliases, and what can be said of a model before torch is loaded."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rlhf.errors import ModelError, nearest
from rlhf.file_signs import lfs_pointer
from rlhf.files import expand_user
from rlhf.models.families import (
    architecture,
    family_problems,
    has_own_code,
    known_types,
    labels,
    quantisation,
    sampling_problem,
)
from rlhf.models.weights import weight_problems

ALIASES = {
    **{f"opt-{size}": f"facebook/opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b")},
    **{f"pythia-{size}": f"EleutherAI/pythia-{size}" for size in ("70m", "160m", "410m", "1b", "2.8b", "6.9b", "12b")},
    **{f"bloom-{size}": f"bigscience/bloom-{size}" for size in ("560m", "1b1", "1b7", "3b", "7b1")},
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
    **{f"qwen2.5-{size}": f"Qwen/Qwen2.5-{size.upper()}" for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b")},
    **{f"qwen3-{size}": f"Qwen/Qwen3-{size.upper()}-Base" for size in ("0.6b", "1.7b", "4b", "8b", "14b")},
    **{f"llama-3.2-{size}": f"meta-llama/Llama-3.2-{size.upper()}" for size in ("1b", "3b")},
    **{f"llama-3.1-{size}": f"meta-llama/Llama-3.1-{size.upper()}" for size in ("8b", "70b")},
    "mistral-7b": "mistralai/Mistral-7B-v0.3",
    "gemma-2b": "google/gemma-2b",
    "gemma-7b": "google/gemma-7b",
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M",
}  # fmt: skip
Kind = Literal["any", "language", "reward", "scorer"]
ADAPTER_NAME = "adapter_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates")
_CLASSIFIER = "AutoModelForSequenceClassification"
_TRUST = "--trust-remote-code"
NO_TEMPLATE = (
    "its tokenizer has no chat template, so it is not known how the model reads a conversation; write the one that it "
    "was trained with into chat_template.jinja in its folder"
)
_HUB_NAME = re.compile(r"^[\w.-]+(/[\w.-]+)?(@[\w./-]+)?$")


def resolve(name: str) -> str:
    """The folder or hub name behind `name`: a folder stays, an alias becomes its hub name."""
    with contextlib.suppress(ValueError):  # the home of no user: then it is a name like others
        if (folder := expand_user(Path(name))).is_dir():
            return str(folder)
    return ALIASES.get(name.lower(), name)


def read_config(name: str) -> dict[str, Any]:
    """The model's config.json, from a folder, the hub's cache or the hub. Raises ModelError with a way out."""
    resolved = resolve(name)
    folder = Path(resolved)
    if folder.is_dir():
        return _folder_config(folder)
    if folder.exists():
        raise ModelError(f"{resolved} is a file; give the folder that holds config.json")
    if not _HUB_NAME.match(resolved) or resolved.count("/") > 1 or resolved[:1] in "./~":
        raise ModelError(f"no folder {resolved}; give a model folder, a hub name (org/name) or an alias{_hint(name)}")
    return _hub_config(name, resolved)


def _folder_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (folder / ADAPTER_NAME).exists():
            raise ModelError(_adapter_line(folder)) from None
        raise ModelError(f"{folder} holds no config.json, so it is not a model folder") from None
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and deep nesting
        if lfs_pointer(file):
            raise ModelError(f"{file} is a Git LFS pointer; run `git lfs pull` in the folder") from None
        raise ModelError(f"{file} is not valid JSON: {str(error) or type(error).__name__}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{file} is not a JSON object, so it describes no model")
    return config


def _adapter_line(folder: Path) -> str:
    """What to do with an adapter without the model that it belongs to."""
    try:
        base = str(json.loads((folder / ADAPTER_NAME).read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        base = "its base model"
    return (
        f"{folder} holds an adapter of {base} ({ADAPTER_NAME}), not a whole model; load both with "
        "peft.AutoPeftModelForCausalLM, call merge_and_unload(), save that with the tokenizer, and give that folder"
    )


def has_embedded_adapter(name: str) -> bool:
    """Whether a folder holds an adapter beside a whole model. Such a model is used without the adapter."""
    folder = Path(resolve(name))
    return (folder / ADAPTER_NAME).exists() and (folder / "config.json").exists()


def _hub_config(name: str, resolved: str) -> dict[str, Any]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    try:
        if not isinstance(try_to_load_from_cache(resolved, "config.json"), str):
            # this request fails at once; the download would try again for half a minute
            get_hf_file_metadata(hf_hub_url(resolved, "config.json"), timeout=5)
        return json.loads(Path(hf_hub_download(resolved, "config.json")).read_text(encoding="utf-8"))
    except GatedRepoError:
        raise ModelError(
            f"{resolved} asks for a licence: accept it on the hub and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(f"{resolved} is not on the hub (or is private){_hint(name)}") from None
    except Exception as error:  # offline, proxies, DNS: the client has a class for each
        raise ModelError(
            f"{resolved} cannot be reached ({type(error).__name__}) and is not in the local cache; "
            f"go online or give a model folder{_hint(name)}"
        ) from None


def _hint(name: str) -> str:
    return "" if name.lower() in ALIASES else nearest(name.lower(), ALIASES)


def has_scalar_head(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a reward model or critic: sequence classification with one label."""
    return architecture(config).endswith("ForSequenceClassification") and labels(config) == 1


def check_model(name: str, *, flag: str, kind: Kind = "any", trust_remote_code: bool = False) -> list[str]:
    """Problems with a model, one line each, found without loading it.

    `kind` "language" refuses a reward model, "reward" refuses everything else, and "any" takes both: stage 2 can start
    from either. "scorer" is a reward model that is only run, so it may be of any family that transformers knows. `flag`
    names the option in the lines.
    """
    if not name:
        return [f"{flag} is needed: a model folder, a hub name or an alias such as opt-1.3b"]
    try:
        config = read_config(name)
    except ModelError as error:
        return [f"{flag} {name}: {problem}" for problem in error.problems]
    if kind == "scorer":
        found = _scorer_problems(config, trust_remote_code=trust_remote_code)
    else:
        found = family_problems(config, trust_remote_code=trust_remote_code) or _kind_problems(config, kind)
    folder = Path(resolve(name))
    if folder.is_dir():
        found += weight_problems(folder)
        if not any((folder / file).exists() for file in _TOKENIZER_FILES):
            found.append("the folder holds no tokenizer")
    return [f"{flag} {name}: {problem}" for problem in found]


def _kind_problems(config: Mapping[str, Any], kind: Kind) -> list[str]:
    """Why a model of a family that can be trained is not of the `kind` that is wanted."""
    named = architecture(config)
    classifies = re.search(r"For(Sequence|Token)Classification$|ForQuestionAnswering$|ForMultipleChoice$", named)
    if kind == "reward" and not has_scalar_head(config):
        return [
            f"has no scalar head (its config names {named or 'nothing'}, not a sequence classifier with one label); "
            "train a reward model with stage 2"
        ]
    if kind == "language" and has_scalar_head(config):
        return ["is a reward model, not a language model"]
    if classifies and not has_scalar_head(config):
        return [f"is a classifier ({named}, {labels(config)} labels), not a language model or a reward model"]
    is_backbone = named.endswith("Model") and not named.endswith("LMHeadModel")
    if kind == "language" and is_backbone and config.get("tie_word_embeddings") is False:
        return [f"is a backbone without a language head ({named}); give the whole model"]
    if kind != "language" and has_own_code(config) and not config["auto_map"].get(_CLASSIFIER):
        return [f"its own code has no sequence classifier ({_CLASSIFIER}), which a reward model needs"]
    return []


def _scorer_problems(config: Mapping[str, Any], *, trust_remote_code: bool) -> list[str]:
    """Why a model cannot score responses, one output for each; encoders can."""
    kind, named, count = str(config.get("model_type") or ""), architecture(config), labels(config)
    if quantised := quantisation(config):
        return [f"its weights are quantised ({quantised}); give the model as it was before that, in bf16 or fp32"]
    if not named.endswith("ForSequenceClassification"):
        return [f"is no sequence classifier (its config names {named or 'nothing'}), which a reward model is"]
    if count != 1:
        return [f"is a classifier with {count} labels; a reward model has one output"]
    if has_own_code(config):
        return [] if trust_remote_code else [f"comes with code of its own (type {kind}); if you trust it, add {_TRUST}"]
    known = known_types()
    if known is not None and kind not in known:
        return [f"the installed transformers does not know models of type {kind or '(none)'}; a newer one may"]
    return []


def template_problems(name: str, *, flag: str) -> list[str]:
    """A line where a model's tokenizer has no chat template; nothing where its files are not on this machine."""
    folder = Path(resolve(name))
    if not folder.is_dir() or any((folder / file).exists() for file in _TEMPLATE_FILES):
        return []
    try:
        if json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"):
            return []
    except (OSError, ValueError, AttributeError):
        pass
    return [f"{flag} {name}: {NO_TEMPLATE}"]


def check_speaker(name: str, *, flag: str, trust_remote_code: bool = False) -> list[str]:
    """Problems with a model that is to answer: those of a language model, and those of sampling from it."""
    found = check_model(name, flag=flag, kind="language", trust_remote_code=trust_remote_code)
    if not found and (problem := sampling_problem(read_config(name))):
        found.append(f"{flag} {name}: {problem}")
    return found


ORIGIN = "_origin"  # in the config.json of a model that does not exist yet: the name of the one that it is made of


def origin(config: Mapping[str, Any], name: str) -> str:
    """What a message calls a model: `name`, or the model that it will be made of."""
    return str(config.get(ORIGIN) or name)


def length_problems(config: Mapping[str, Any], name: str, longest: int) -> list[str]:
    """A line when sequences of `longest` tokens do not fit the positions of a model, `config` being its config.json."""
    limit = model_limit(config)
    if limit is None or longest <= limit:
        return []
    return [
        f"max_prompt_length + max_response_length = {longest} tokens, but {origin(config, name)} has {limit} "
        f"positions; lower one of them by {longest - limit}"
    ]


def model_limit(config: Mapping[str, Any]) -> int | None:
    """The longest sequence that a model's positions allow, in tokens; None where its config does not say."""
    limits = [config.get(key) for key in ("max_position_embeddings", "n_positions", "max_seq_len")]
    return next((int(limit) for limit in limits if limit), None)
