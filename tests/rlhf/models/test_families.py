"""What a config.json says of a family, and that it says what the installed transformers does."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from rlhf.models import families
from rlhf.models.families import family_problems, quantisation, sampling_problem


def test_the_tables_are_those_of_the_installed_transformers() -> None:
    """They are read from its source, without importing it."""
    assert families.known_types() == set(CONFIG_MAPPING.keys())
    assert families.causal_classes() == dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert families.has_classifier("llama")
    assert not families.has_classifier("granite")
    assert "granite" not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


@pytest.mark.parametrize(
    "config, message",
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "is an encoder (type bert)"),
        ({"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}, "is an encoder (type modernbert)"),
        ({"model_type": "roberta", "is_decoder": False}, "is an encoder (type roberta)"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "is an encoder-decoder (type t5)"),
        ({"model_type": "bart"}, "is an encoder-decoder (type bart)"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "is no language model (ViTModel)"),
        ({"model_type": "llama9"}, "the installed transformers does not know models of type llama9"),
        ({"architectures": ["LlamaForCausalLM"]}, "has no model_type"),
        ({"model_type": "modernbert-decoder"}, "modernbert-decoder are not supported: their logits are more than"),
        ({"model_type": "x", "auto_map": {"AutoModelForCausalLM": "m.M"}}, "add --trust-remote-code"),
        (
            {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
            "its weights are quantised (gptq, 4 bits), which cannot be trained",
        ),
    ],
)
def test_what_cannot_be_trained_is_named(config: dict[str, Any], message: str) -> None:
    (problem,) = family_problems(config)
    assert message in problem


@pytest.mark.parametrize(
    "config",
    [
        *({"model_type": kind} for kind in ("llama", "gpt2", "granite", "mamba", "qwen3_next", "gemma3", "gpt-sw3")),
        {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "m.M"}},  # transformers knows it itself
        {"model_type": "llama", "quantization_config": None},
        {"model_type": "llama", "is_decoder": False},  # every older config.json says so
    ],
)
def test_what_can_be_trained_is_let_through(config: dict[str, Any]) -> None:
    assert family_problems(config) == []


def test_own_code_is_let_through_with_the_flag() -> None:
    config = {"model_type": "x", "auto_map": {"AutoModelForCausalLM": "m.M"}}
    assert family_problems(config, trust_remote_code=True) == []


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
        ({"load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
        ({"quant_method": "fp8"}, "fp8"),
        ({}, ""),
    ],
)
def test_quantisation_has_a_name(settings: dict[str, Any], name: str) -> None:
    assert quantisation({"quantization_config": settings}) == name
    assert quantisation({"text_config": {"quantization_config": settings}}) == name


def test_sampling_is_refused_by_the_part_that_reads_text() -> None:
    assert sampling_problem({"model_type": "llama"}) is None
    assert sampling_problem({"model_type": "mamba"}) is None
    assert "is of type rwkv" in str(sampling_problem({"model_type": "rwkv"}))
    assert "is of type minimax" in str(
        sampling_problem({"model_type": "any", "text_config": {"model_type": "minimax"}})
    )
