from __future__ import annotations

from data.collate import collate_demonstrations, collate_preferences

DEMONSTRATIONS = [
    {"input_ids": [5, 6, 7, 2], "learned": [2, 4]},
    {"input_ids": [5, 8, 9, 7, 7, 2], "learned": [1, 2, 3, 6]},
]


def test_demonstrations_count_the_parts_that_are_learned() -> None:
    batch = collate_demonstrations(DEMONSTRATIONS, pad_token_id=0)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 2, 0, 0], [5, 8, 9, 7, 7, 2]]
    assert batch.loss_mask_BT.int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 1, 0, 1, 1, 1]]
    assert batch.position_ids_BT is None


def test_training_on_the_prompt_leaves_out_the_token_that_nothing_predicts() -> None:
    batch = collate_demonstrations(DEMONSTRATIONS, pad_token_id=0, train_on_prompt=True)
    assert batch.loss_mask_BT.int().tolist() == [[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]]


def test_preferences_are_chosen_rows_then_rejected_rows() -> None:
    rows = [
        {"prompt_ids": [5, 6], "chosen_ids": [7, 2], "rejected_ids": [8, 8, 2], "margin": 0.5},
        {"prompt_ids": [5], "chosen_ids": [9, 9, 9, 2], "rejected_ids": [2], "margin": 0.0},
    ]
    batch = collate_preferences(rows, pad_token_id=0)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 2, 0], [5, 9, 9, 9, 2], [5, 6, 8, 8, 2], [5, 2, 0, 0, 0]]
    assert batch.last_B.tolist() == [3, 4, 4, 1]
    assert batch.margin_B.tolist() == [0.5, 0.0]
    assert batch.pair_mask_B.tolist() == [True, True]


def test_the_end_token_is_found_by_length_where_it_equals_pad() -> None:
    """Scores used to be read one token early where pad and end token were the same id; lengths decide, not ids."""
    rows = [{"prompt_ids": [5], "chosen_ids": [7, 0], "rejected_ids": [0], "margin": 0.0}]
    assert collate_preferences(rows, pad_token_id=0).last_B.tolist() == [2, 1]


def test_no_rows_give_a_forward_in_which_nothing_counts() -> None:
    demonstrations = collate_demonstrations([], pad_token_id=4)
    assert demonstrations.input_ids_BT.tolist() == [[4]]
    assert not demonstrations.loss_mask_BT.any()
    preferences = collate_preferences([], pad_token_id=4)
    assert preferences.input_ids_BT.tolist() == [[4], [4]]
    assert preferences.last_B.tolist() == [0, 0]
    assert preferences.pair_mask_B.tolist() == [False]
