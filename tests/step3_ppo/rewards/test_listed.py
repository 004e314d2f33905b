"""What is wrong with the models of `--reward`, told with the plan: prompts that they cannot read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import ModelError
from rlhf.template import HUMAN_ASSISTANT, Template
from step3_ppo.config import PPOConfig
from step3_ppo.rewards.listed import judge_problems
from tests.helpers.templates import EXACT, TOOLS, template_of

ASK = {"role": "user", "content": "Why?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
CALLED = [
    ASK,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "blue"},
]


def tokenizer_of(folder: Path, chat_template: str) -> str:
    template = template_of(chat_template)
    template.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def found(tmp_path: Path) -> Any:
    """`found(rows, judge)` → the problems of a reward model with the chat template `judge`; the actor writes tools."""
    actor = tokenizer_of(tmp_path / "actor", TOOLS)

    def problems(rows: list[Any], judge: str, **changes: Any) -> list[str]:
        data = tmp_path / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        model = actor if judge == TOOLS else tokenizer_of(tmp_path / "judge", judge)
        values = {"reward": [f"model:{model}"], "data_split": "0,0,1", **changes}
        return judge_problems(PPOConfig(actor_model=actor, data_path=[str(data)], **values), {})

    return problems


def test_calls_of_tools_that_a_judge_does_not_write_are_found_with_the_plan(found: Any, tmp_path: Path) -> None:
    """The run ended at the first rollout, when both models of the stage were loaded and responses were drawn."""
    rows = [{"prompt": "Plain?"}, {"prompt": CALLED}, {"prompt": CALLED[:1]}]
    [line] = found(rows, HUMAN_ASSISTANT)
    judge, data = tmp_path / "judge", tmp_path / "rows.jsonl"
    assert line == (
        f"--reward model:{judge}: {judge} cannot read the prompt of {data}, line 2: the chat "
        "template does not write calls and results of tools; leave such rows out"
    )
    with pytest.raises(ModelError, match="does not write calls and results of tools"):
        template_of(HUMAN_ASSISTANT).prompt_ids(CALLED)  # type: ignore[arg-type]
    assert found(rows, TOOLS) == []
    assert found(rows[::2], HUMAN_ASSISTANT) == []


def test_a_judge_that_refuses_a_system_turn_is_found(found: Any) -> None:
    rows = [{"prompt": f"q{i}", "system": "Be brief." if i == 7 else None} for i in range(9)]
    [line] = found(rows, EXACT["Gemma"])
    assert "rows.jsonl, line 8: the chat template cannot be rendered: no system turn; leave such rows out" in line
    assert found(rows, EXACT["ChatML"]) == []


def test_rows_of_other_stages_are_not_read_by_a_judge(found: Any) -> None:
    """Half of the prompts belong to stage 1, whose rows a reward model never sees."""
    rows = [{"prompt": f"q{i}", "system": "Be brief."} for i in range(40)]
    assert found(rows, EXACT["Gemma"], data_split="1,1,0") == []
    assert len(found(rows, EXACT["Gemma"], data_split="1,0,1")) == 1


def test_one_that_reads_the_actors_tokens_is_not_asked(found: Any, tmp_path: Path) -> None:
    """The same vocabulary and the same text of a question: its ids are those of the actor, calls included."""
    rows = [{"prompt": CALLED}]
    plain = TOOLS.replace("m.tool_calls or []", "[]")
    with pytest.raises(ModelError, match="does not write calls"):
        template_of(plain).render(CALLED)  # type: ignore[arg-type]
    assert found(rows, plain) == []


def test_the_trained_reward_model_of_another_tokenizer_is_asked(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": CALLED}) + "\n", encoding="utf-8")
    actor, judge = tokenizer_of(tmp_path / "a", TOOLS), tokenizer_of(tmp_path / "b", HUMAN_ASSISTANT)
    config = PPOConfig(actor_model="out/sft", reward_model="out/reward", data_path=[str(data)], data_split="0,0,1")
    made_of = {"actor_model": {"_origin": actor}, "reward_model": {"_origin": judge}}
    [line] = judge_problems(config, made_of)
    assert line.startswith(f"reward_model: {judge} cannot read the prompt of {data}, line 1")
    assert judge_problems(config, {**made_of, "reward_model": {"_origin": actor}}) == []
    assert isinstance(template_of(TOOLS), Template)
