"""What can be done with a model's family, from its config.json alone. Imports no torch.

Which families there are, and which class loads them, is read from the source of the installed transformers: importing
it takes seconds and brings torch. What the tables add was found by comparing tiny models of every family with
transformers; `tests/rlhf/generation/test_state_cache.py` and `tests/rlhf/models/test_families.py` repeat that.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Every token of these sees those behind it, or (as decoders) they have layers between backbone and output embedding.
ENCODERS = {
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
    "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta",
    "xlm-roberta-xl", "xlnet", "xmod",
}  # fmt: skip
# transformers can load the decoder of these alone, but a checkpoint is of both parts.
ENCODER_DECODERS = {
    "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "musicgen", "musicgen_melody",
    "mvp", "pegasus", "plbart", "prophetnet", "trocr", "whisper",
}  # fmt: skip
_HEAD = "their logits are more than an output embedding"
_ALONE = "their backbone cannot be called alone"
_OTHER = "they need more than the tokens of a text"
UNSUPPORTED = {
    "blt": _OTHER, "cpmant": _OTHER, "gemma4_assistant": _OTHER, "gemma4_unified_assistant": _OTHER,
    "inkling_text": _HEAD, "llama4": _ALONE, "llama4_text": _ALONE, "mllama": _ALONE, "modernbert-decoder": _HEAD,
}  # fmt: skip
# Models that train, but have no cache, or one that neither the sampler nor transformers fills rightly for rows of
# different lengths. (Those with an index of keys choose other keys with a cache than without one.)
UNSAMPLED = {
    "axk2", "deepseek_v32", "deepseek_v4", "dots3_note", "dots3_note_text", "glm_moe_dsa", "hy_v4", "minimax",
    "openai-gpt", "qwen4_exp", "qwen4_exp_text", "recurrent_gemma", "rwkv", "xlstm", "zamba",
}  # fmt: skip
# Models with states of linear attention, state-space layers or convolutions: sampled through transformers' own cache.
STATEFUL = {
    "bailing_hybrid", "bamba", "falcon_h1", "falcon_mamba", "granitemoehybrid", "inkling2_text", "jamba", "kimi_linear",
    "lfm2", "lfm2_moe", "lfm3", "mamba", "mamba2", "nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_5_moe",
    "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "zamba2", "zaya",
}  # fmt: skip

_TYPES, _CAUSAL = "CONFIG_MAPPING_NAMES", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
_CLASSIFIERS = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"
_TABLES = {_TYPES, _CAUSAL, _CLASSIFIERS}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json that describes the language model: a model that also reads images nests it."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def model_type(config: Mapping[str, Any]) -> str:
    return str(config.get("model_type") or "")


def architecture(config: Mapping[str, Any]) -> str:
    """The class that wrote a config.json, as it names it; empty where it names none."""
    named = config.get("architectures")
    return named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""


def labels(config: Mapping[str, Any]) -> int:
    """The number of labels of a classifier. transformers writes the names of the labels, and nothing for two."""
    return int(config.get("num_labels") or len(config.get("id2label") or [0, 0]))


def has_own_code(config: Mapping[str, Any]) -> bool:
    """Whether a model comes with code of its own that transformers does not know."""
    return isinstance(config.get("auto_map"), Mapping) and model_type(config) not in (known_types() or ())


def family_problems(config: Mapping[str, Any], *, trust_remote_code: bool = False) -> list[str]:
    """Why a model of this config.json cannot be trained, whatever it is for; a line that goes on after its name."""
    kind, named = model_type(config), architecture(config)
    known, causal = known_types(), causal_classes()
    if quantised := quantisation(config):
        return [
            f"its weights are quantised ({quantised}), which cannot be trained; give the model as it was before that, "
            "in bf16 or fp32"
        ]
    if not kind:
        return ["its config.json has no model_type, so transformers cannot tell what it is"]
    if known is None or causal is None:
        return []
    if has_own_code(config):
        if trust_remote_code:
            return []
        return [f"a model of type {kind} comes with code of its own; if you trust that code, add --trust-remote-code"]
    if kind not in known and kind not in causal:
        return [f"the installed transformers does not know models of type {kind}; a newer one may"]
    if config.get("is_encoder_decoder") or kind in ENCODER_DECODERS:
        return [f"is an encoder-decoder (type {kind}); a causal language model is needed"]
    if kind in ENCODERS or (kind not in causal and named.endswith("ForMaskedLM")):
        return [
            f"is an encoder (type {kind}): each of its tokens sees those behind it, so it cannot learn to predict "
            "them; a causal language model is needed"
        ]
    if kind not in causal:
        return [f"is no language model ({named or f'type {kind}'}); a causal language model is needed"]
    for each in (kind, model_type(text_config(config))):
        if each in UNSUPPORTED:
            return [f"models of type {each} are not supported: {UNSUPPORTED[each]}"]
    return []


def sampling_problem(config: Mapping[str, Any]) -> str | None:
    """Why nothing can be sampled from a model of this config.json, as the end of a sentence."""
    found = {model_type(config), model_type(text_config(config))} & UNSAMPLED
    if not found:
        return None
    return (
        f"is of type {sorted(found)[0]}, which has no cache that the sampler can use, so nothing can be sampled from "
        "it; stages 1 and 2 can train it, stage 3, chat and evaluation need another family"
    )


def quantisation(config: Mapping[str, Any]) -> str:
    """How the weights of a config.json are quantised: `gptq, 4 bits`; empty where they are not."""
    settings = config.get("quantization_config") or text_config(config).get("quantization_config")
    if not isinstance(settings, Mapping) or not settings:
        return ""
    method = str(settings.get("quant_method") or "")
    bits = next((n for n, key in ((4, "load_in_4bit"), (8, "load_in_8bit")) if settings.get(key)), None)
    bits = bits or settings.get("bits") or settings.get("w_bit")
    method = method or ("bitsandbytes" if bits else "an unnamed method")
    return f"{method}, {bits} bits" if bits else method


# --- the installed transformers ---------------------------------------------------------------------------------------


def known_types() -> frozenset[str] | None:
    """The model types that the installed transformers knows; None if its source looks unlike what is expected."""
    tables = _read_tables()
    return None if tables is None else frozenset(tables[_TYPES])


def causal_classes() -> Mapping[str, Any] | None:
    """Model type → class of the language model in the installed transformers."""
    tables = _read_tables()
    return None if tables is None else tables[_CAUSAL]


def has_classifier(kind: str) -> bool:
    """Whether the installed transformers has a sequence classifier for a model type."""
    tables = _read_tables()
    return tables is not None and kind in tables[_CLASSIFIERS]


@functools.cache
def _read_tables() -> dict[str, dict[str, Any]] | None:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "models" / "auto"
    found: dict[str, dict[str, Any]] = {}
    try:
        for name in ("auto_mappings.py", "configuration_auto.py", "modeling_auto.py"):
            for table, items in _tables_of(folder / name):
                found.setdefault(table, {}).update(items)
    except (OSError, SyntaxError, ValueError):
        return None
    return found if found.keys() >= _TABLES else None


def _tables_of(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The literals of the tables in a source file: `NAME = OrderedDict([(key, value), …], **{key: value})`, and
    `NAME.update({…})`."""
    found = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        call = node.value if isinstance(node, ast.Assign | ast.Expr) else None
        if not isinstance(call, ast.Call):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(call.func, "value", None)
        if isinstance(target, ast.Name) and target.id in _TABLES:
            for part in [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg is None)]:
                if isinstance(part, ast.List | ast.Dict):  # a name stands for a table of another file
                    found.append((target.id, dict(ast.literal_eval(part))))
    return found
