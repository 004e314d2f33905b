"""Nodes whose versions differ."""

from __future__ import annotations

import torch

from rlhf.versions import on_a_node, version_problems


def test_a_node_says_what_it_computes_with() -> None:
    found = on_a_node()
    assert found["torch"] == torch.__version__
    assert len(found["source"]) == 8


def test_differences_are_named() -> None:
    """Ranks with two versions of torch hung, or ended with an error of the network."""
    first = {"torch": "2.13.0", "peft": "0.18", "source": "a"}
    nodes = {"node 0": first, "node 1": first, "node 2": {"torch": "2.12.0", "source": "a"}, "node 3": {**first}}
    nodes["node 3"]["source"] = "b"
    assert version_problems(nodes) == [
        "node 2 and node 0 differ: torch 2.12.0 and 2.13.0, peft none and 0.18; install the same on all nodes",
        "node 3 and node 0 differ: the files of this project are not the same; install the same on all nodes",
    ]
    assert version_problems({}) == []
