"""Models that are only run: the reference and the reward model."""

from __future__ import annotations

import pytest
import torch

from rlhf.models.causal_model import CausalModel
from rlhf.models.loading import Loading, load_causal_lm, load_tokenizer
from rlhf.stage_config import OptimizerSettings
from rlhf.training import distributed
from rlhf.training.engine import TrainEngine, build_frozen
from tests.helpers.tiny import save_tiny

pytestmark = [pytest.mark.usefixtures("one_rank"), pytest.mark.gpu]


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_frozen_bf16_model_scores_as_the_trained_one_bit_by_bit(tmp_path, zero_stage):
    """The reference was cast to bf16 with its buffers, so its rotary frequencies were rounded and log-probabilities of
    a 135M model were off by 0.2: the KL of the very first rollout was not 0."""
    folder = str(save_tiny(tmp_path / "llama", "llama"))

    def load(stage: int) -> CausalModel:
        return CausalModel(
            load_causal_lm(Loading(folder, load_tokenizer(folder), torch.bfloat16, zero_stage=stage, no_dropout=True))
        )

    trained = TrainEngine(
        load(1), OptimizerSettings(), learning_rate=1e-3, total_steps=1, zero_stage=1, dtype=torch.bfloat16,
        micro_batch_size=2, where="test",
    )  # fmt: skip
    frozen = build_frozen(load(zero_stage), zero_stage=zero_stage, dtype=torch.bfloat16)
    # far positions, where a rounded frequency has turned the furthest
    ids_BT = torch.randint(3, 250, (2, 100), generator=torch.Generator().manual_seed(0))
    count_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    count_BT[:, 50:] = True
    trained.train(False)
    ids_BT, count_BT = ids_BT.to(distributed.device()), count_BT.to(distributed.device())
    with torch.no_grad():
        assert torch.equal(trained(ids_BT, count_BT)[0], frozen(ids_BT, count_BT)[0])
    module = getattr(frozen, "module", frozen)
    assert {b.dtype for name, b in module.named_buffers() if "inv_freq" in name} == {torch.float32}
