"""python -m scripts.api_page: write docs/api.md, the public API as its docstrings tell it.

`PUBLIC` lists what a program of one's own may build on. The page is read from the sources; nothing is imported.
`--check` writes nothing and fails when the page is not up to date.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from rlhf.command import Command
from rlhf.console import say
from rlhf.errors import EXIT_DONE, ConfigError
from rlhf.files import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
PUBLIC: dict[str, dict[str, tuple[str, ...]]] = {
    "A training loop of one's own": {
        "step3_ppo.roles": ("build_roles", "Roles", "Actor", "Critic"),
        "step3_ppo.rollout": ("generate", "roll_out", "Rollout"),
        "step3_ppo.passes": ("ForwardPasses",),
        "step3_ppo.experience": ("Measured", "Experience", "make_experience", "rollout_metrics"),
        "step3_ppo.main": ("sampling_of",),
        "step3_ppo.optimise": ("optimise", "steps_per_iteration"),
        "step3_ppo.rewards.function": ("Scorer", "RewardFunction"),
    },
    "Mathematics": {
        "step3_ppo.advantages": (
            *("normalise_scores", "kl_per_token", "kl_estimates", "shape_rewards", "estimate_advantages"),
            *("explained_variance", "KLController"),
        ),
        "step3_ppo.estimators": (
            *("Rewarded", "Advantages", "gae", "rloo", "grpo", "dr_grpo", "reinforce_pp", "uniform_groups"),
            *("Objective", "Estimator"),
        ),
        "step3_ppo.losses": (
            *("actor_loss", "sequence_actor_loss", "kl_loss", "mean_weights", "mean_count", "critic_loss"),
        ),
        "step2_reward.loss": ("pairwise_losses", "calibration_error", "held_out_figures"),
        "step2_dpo.loss": ("dpo_losses", "ipo_losses", "kto_losses"),
        "rlhf.models.tensors": ("whiten", "pad_right", "chunked_logprobs", "correlation"),
    },
    "Models and generation": {
        "rlhf.template": ("Template",),
        "rlhf.models.loading": ("Loading", "load_tokenizer", "load_causal_lm"),
        "rlhf.models.scalar_model": ("ScalarModel", "load_scalar_model"),
        "rlhf.models.causal_model": ("CausalModel", "TokenLogprobs"),
        "rlhf.models.reward_model": ("RewardModel",),
        "rlhf.models.export": ("export",),
        "rlhf.generation.drawing": ("Sampling",),
        "rlhf.generation.sampler": ("Sampler", "Generation"),
    },
    "Training": {
        "rlhf.training.engine": ("TrainEngine", "Step", "build_frozen"),
        "rlhf.training.stage_run": ("StageRun",),
        "rlhf.training.checkpoint": ("Checkpoints", "Checkpoint"),
        "rlhf.metrics": ("MetricsLog", "read_metrics"),
    },
    "Data": {
        "data.example": ("Example", "Remark", "ask"),
        "data.config": ("DataSettings",),
        "data.stage_data": ("demonstrations", "preferences", "unpaired", "prompts", "pretraining", "StageData"),
        "data.batches": ("StepSampler", "deal"),
    },
    "Stages": {
        "rlhf.stages.spec": ("StageSpec", "ModelInput", "ModelOutput", "Layout", "Chart", "Headline"),
        "rlhf.stages.command": ("stage_command",),
        "rlhf.stages.result": ("StageResult", "read_result"),
        "rlhf.config": ("Config", "setting"),
        "rlhf.pipeline.command": ("pipeline_command",),
    },
}
Definition = ast.ClassDef | ast.FunctionDef


def page() -> str:
    """The text of docs/api.md."""
    lines = [
        "# The public API",
        "",
        "Made by `python -m scripts.api_page` from the docstrings; edit them, not this page. Names carry shapes: "
        "`advantages_BR` is",
        "a tensor of B sequences × R response tokens (`docs/architecture.md` has the legend).",
    ]
    for heading, modules in PUBLIC.items():
        lines += ["", f"## {heading}"]
        for module, names in modules.items():
            tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
            found = {node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
            for name in names:
                if name not in found:
                    raise ConfigError(f"scripts/api_page.py: {module} has no public class or function {name}")
                lines += ["", f"### `{module}.{name}`", "", *_definition(found[name])]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines) + "\n")


def _definition(node: Definition) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef):
        yield from (f"    {line}" for line in _signature(node))
        yield from _text(node)
        return
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    if init is not None:
        yield from (f"    {line}" for line in _signature(init, name=node.name))
    elif fields and not any("setting(" in ast.unparse(f) for f in fields):
        yield from (f"    {ast.unparse(field)}" for field in fields if not ast.unparse(field.target).startswith("_"))
    yield from _text(node)
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and ast.get_docstring(method):
            yield ""
            yield f"**`{method.name}`**"
            yield ""
            if not any(ast.unparse(d) == "property" for d in method.decorator_list):
                yield from (f"    {line}" for line in _signature(method))
            yield from _text(method)


def _signature(node: ast.FunctionDef, *, name: str = "") -> list[str]:
    """`name(arguments) -> type` on one line, or an argument a line where that is too long."""
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("self")
    arguments = arguments.removeprefix("cls, ")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and not name else ""
    line = f"{name or node.name}({arguments}){returns}"
    if len(line) <= 108:
        return [line]
    parts = ast.unparse(node.args)
    pieces = [piece for piece in _split(parts) if piece not in ("self", "cls")]
    return [f"{name or node.name}(", *(f"    {piece}," for piece in pieces), f"){returns}"]


def _split(text: str) -> list[str]:
    """Arguments apart at the commas outside of brackets."""
    pieces, depth, current = [], 0, ""
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            pieces.append(current.strip())
            current = ""
        else:
            current += character
    return [*pieces, current.strip()]


def _text(node: Definition) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text:
        yield ""
        yield from inspect.cleandoc(text).splitlines()


@click.command("python -m scripts.api_page", cls=Command)
@click.option("--check", is_flag=True, help="comparison with the page that is there; exit code 2 where it differs")
def main(check: bool) -> int:
    """Write docs/api.md from the docstrings of the public API."""
    text = page()
    if check:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            raise ConfigError("docs/api.md is not up to date; run python -m scripts.api_page")
        return EXIT_DONE
    write_text(PAGE, text)
    say(f"written: {PAGE.relative_to(ROOT)}")
    return EXIT_DONE


if __name__ == "__main__":
    main()
