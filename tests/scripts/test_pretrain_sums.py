"""The arithmetic demo's preparation: its base model, its sums, and the pipeline that starts from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import train
from rlhf.pipeline.plan import Plan, make_plan
from rlhf.pipeline.recipes import Request
from scripts.pretrain_sums import SumsSettings, main, make_tokenizer, prepare
from step1_sft.config import SFTConfig
from step3_ppo.config import PPOConfig
from tests.helpers.golden import check_content
from tests.helpers.untrained import untrained

TINY: dict[str, Any] = {"hidden_size": 32, "layers": 1, "steps": 2, "batch_tokens": 256}


def plan_after_preparation(folder: Path, **flags: object) -> Plan:
    """The plan of the recipe, with what the command `scripts.pretrain_sums` made in `folder`."""
    words = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    arguments = ["--output-dir", str(folder / "prepare"), "--cache-dir", str(folder / "cache"), *words]
    result = CliRunner().invoke(main, arguments, standalone_mode=False)
    assert result.exit_code == 0, result.output
    prepared = json.loads((folder / "prepare" / "prepare.json").read_text(encoding="utf-8"))
    request = Request(flags={"output_dir": folder / "out", **flags}, recipe="arithmetic")
    return make_plan(train.STAGES, request, prepared=prepared)


def test_the_recipe_goes_from_the_made_base_to_a_checked_answer_without_critic_and_reward_model(
    tmp_path: Path,
) -> None:
    plan = plan_after_preparation(tmp_path)
    assert [stage.spec.number for stage in plan.stages] == [1, 3]
    assert plan.base_model == str(tmp_path / "prepare/sums/base")
    ppo = plan.stages[-1].config
    assert isinstance(ppo, PPOConfig)
    assert ppo.estimator.has_critic is False
    assert [(reward.spec, reward.weight) for reward in ppo.rewards] == [("check:exact,column=solution", 1)]


@pytest.mark.slow
def test_demonstrations_and_prompts_are_different_sums_and_answers_reach_the_check_alone(tmp_path: Path) -> None:
    """Were a sum in both stages, what is measured as learning from the check could be imitation."""
    from data import stage_data
    from rlhf.template import Template

    plan = plan_after_preparation(tmp_path)
    template = Template(make_tokenizer(SumsSettings()))
    sft, ppo = (stage.config for stage in plan.stages)
    assert isinstance(sft, SFTConfig)
    assert isinstance(ppo, PPOConfig)
    learned, asked = stage_data.demonstrations(sft, template), stage_data.prompts(ppo, template)
    asked_ids = {tuple(row["prompt_ids"]) for row in [*asked.train, *asked.held_out]}
    learned_ids = {tuple(row["input_ids"][: row["prompt_length"]]) for row in [*learned.train, *learned.held_out]}
    assert not asked_ids & learned_ids
    assert len(learned_ids) + len(asked_ids) == 3000
    lengths = [len(row["input_ids"]) - row["prompt_length"] for row in learned.train]
    assert max(lengths) <= sft.max_response_length, "a working would be cut"


def test_the_format_of_the_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that other code filled under the same key would be taken for this code's."""
    decided = untrained(monkeypatch)
    folder = prepare(SumsSettings(cache_dir=tmp_path / "cache", **{**TINY, "steps": 20}))
    files = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jsonl"))}
    assert list(files) == ["held_out_sums.jsonl", "sums.jsonl"]
    check_content(
        [files, decided], "45db44d93b48e1f7ed8b359a", cache="arithmetic demo's", file="scripts/pretrain_sums.py"
    )


def test_each_digit_is_a_token() -> None:
    """With tokens of several digits a column would not be one of the text that is added."""
    tokenizer = make_tokenizer(SumsSettings())
    for text in ("478 + 365", "8+5=13 7+6+1=14 #### 843", "2026"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert sum(c.isdigit() for c in text) == sum(tokenizer.decode([i]).isdigit() for i in ids)
