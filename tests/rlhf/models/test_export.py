"""An exported folder can be used by those whom the umask lets in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from rlhf.models.export import export
from tests.helpers.tiny import tiny_lm, tiny_tokenizer


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_file_of_a_model_has_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    """The weights, and those of the adapter, were written with mode 0600: nobody else on a cluster could load them."""
    lm: Any = tiny_lm()
    model = get_peft_model(lm, LoraConfig(r=2, target_modules="all-linear"))
    before = os.umask(umask)
    try:
        export(model, tmp_path / "model", tokenizer=tiny_tokenizer())
    finally:
        os.umask(before)
    found = {path.relative_to(tmp_path): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert {Path("model/model.safetensors"), Path("model/adapter/adapter_model.safetensors")} <= found.keys()
    assert found == {name: (0o666 if name.suffix else 0o777) & ~umask for name in found}
