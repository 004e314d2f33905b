"""Plans of the cut: the families that stand in the tables are those that the installed transformers can cut right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf.errors import ConfigError
from step3_ppo.hybrid.parallel_plans import FAMILIES, Family, family_of, style_of
from step3_ppo.hybrid.parallel_sizes import CUTTABLE, WHOLE_ATTENTION
from tests.helpers import tiny
from tests.helpers.cut_families import MORE_FAMILIES


def config_of(model_type: str) -> Any:
    return SimpleNamespace(model_type=model_type, base_model_tp_plan=CONFIG_MAPPING[model_type].base_model_tp_plan)


def is_known(name: str) -> bool:
    return name in CONFIG_MAPPING and name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def styles(model_type: str) -> set[str]:
    """What a family's cut is made of: our styles by the kind of what they cut, and transformers' for what is whole."""
    if model_type in FAMILIES:
        return {f"{model_type}'s own"}
    plan = config_of(model_type).base_model_tp_plan
    return {f"{style} {'of experts' if '.experts' in name else ''}" for name, style in plan.items()}


def test_every_family_in_the_table_is_tested_or_made_of_what_is_tested() -> None:
    """`test_tensor_parallel.py` compares the cut copy of each tiny model with the whole one."""
    tested = {make().get_text_config().model_type for make in (*tiny.FAMILIES.values(), *MORE_FAMILIES.values())}
    assert tested <= CUTTABLE
    assert set(FAMILIES) <= tested
    known = {style for model_type in tested for style in styles(model_type)}
    for model_type in filter(is_known, CUTTABLE - tested):
        assert styles(model_type) <= known, model_type


def test_the_tables_are_those_of_the_installed_transformers() -> None:
    """A plan is checked without transformers, so what can be cut, and whether by heads, stands in tables of our own."""
    for model_type in filter(is_known, CUTTABLE):
        plan = family_of(config_of(model_type)).plan
        by_heads = any("att" in name and style.startswith("column") for name, style in plan.items())
        assert by_heads == (model_type not in WHOLE_ATTENTION), model_type
    assert WHOLE_ATTENTION <= CUTTABLE


# Families that transformers cuts and we do not, and why.
NOT_CUT = {
    "states": {
        "bailing_hybrid", "granitemoehybrid", "inkling2_text", "inkling_text", "jamba", "kimi_linear", "lfm2_moe",
        "minimax", "nemotron_h", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "qwen4_exp_text",
    },
    "caches of their own": {"axk2", "deepseek_v32", "deepseek_v4", "dots3_note_text", "glm_moe_dsa", "hy_v4"},
    "experts of their own": {"doge", "llama4_text", "longcat_flash"},
    "several inputs": {"llama4", "phi4_multimodal"},
}  # fmt: skip


def test_no_family_that_transformers_cuts_is_forgotten() -> None:
    refused = set().union(*NOT_CUT.values())
    assert not refused & CUTTABLE
    planned = {name for name in filter(is_known, CONFIG_MAPPING) if config_of(name).base_model_tp_plan}
    assert planned - CUTTABLE == refused, "try them, and bring CUTTABLE in parallel_sizes.py up to date"


@pytest.mark.parametrize(
    ("model_type", "plan"),
    [
        ("mamba", None),
        ("llama", None),  # transformers has lost its plan
        ("llama", {"layers.*.mlp.gate_proj": "colwise", "layers.*.mlp.down_proj": "sideways"}),
        ("qwen3_next", {"layers.*.mlp.gate_proj": "colwise"}),
    ],
)
def test_a_family_without_a_plan_is_refused(model_type: str, plan: dict[str, str] | None) -> None:
    with pytest.raises(ConfigError, match=f"type {model_type}, which has no plan .* use 1"):
        family_of(SimpleNamespace(model_type=model_type, base_model_tp_plan=plan))


def test_a_star_stands_for_one_part_of_a_name() -> None:
    """`mlp.gate_proj` of a layer is not that of its shared expert, whose size is another."""
    family = Family(plan={"layers.*.mlp.gate_proj": "column", "layers.*.attn.[qkv]_proj": "row"})
    assert style_of(family, "layers.3.mlp.gate_proj") == "column"
    assert style_of(family, "layers.3.attn.k_proj") == "row"
    for name in ("layers.3.mlp.shared.mlp.gate_proj", "vision.layers.3.mlp.gate_proj", "layers.3.mlpsgate_proj"):
        assert style_of(family, name) is None
