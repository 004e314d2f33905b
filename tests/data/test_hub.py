"""Hub datasets, with a hub that answers from memory: which configuration, revision and splits are asked for."""

from __future__ import annotations

import inspect
from typing import Any

import datasets
import pytest

from data import hub, stage_data
from data.sources import HubName
from rlhf.errors import DataError


@pytest.fixture
def fake_hub(monkeypatch) -> Any:
    """`fake_hub(name, {split: rows})` puts a dataset on the hub; `.asked` lists what was loaded from it."""
    known: dict[str, dict[str, list[Any]]] = {}

    class Hub:
        def __init__(self) -> None:
            self.asked: list[tuple[str, Any]] = []

        def __call__(self, name: str, splits: dict[str, list[Any]]) -> None:
            known[name] = splits

    fake = Hub()

    signatures = [inspect.signature(f) for f in (datasets.load_dataset, datasets.get_dataset_split_names)]

    def load(path: str, *, split: str, **options: Any) -> Any:
        signatures[0].bind(path, split=split, **options)
        fake.asked.append((f"{path}#{split}", {k: v for k, v in options.items() if v}))
        return datasets.Dataset.from_list(known[path][split], split=split)  # type: ignore[arg-type]

    def split_names(path: str, **options: Any) -> list[str]:
        signatures[1].bind(path, **options)
        if path not in known:
            raise ConnectionError(f"Couldn't reach '{path}' on the Hub")
        return list(known[path])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_split_names", split_names)
    hub.load_split.cache_clear()
    hub.hub_splits.cache_clear()
    yield fake
    hub.load_split.cache_clear()
    hub.hub_splits.cache_clear()


def transcripts(count: int, name: str) -> list[dict[str, str]]:
    return [
        {"prompt": f"\n\nHuman: {name} {i}?\n\nAssistant:", "response": " y", "chosen": " y", "rejected": " n"}
        for i in range(count)
    ]


def test_a_datasets_own_test_split_is_what_is_held_out(fake_hub, settings, template) -> None:
    fake_hub("Dahoas/rm-static", {"train": transcripts(60, "train"), "test": transcripts(7, "test")})
    data = stage_data.preferences(settings("Dahoas/rm-static", data_split="0,1,0"), template)
    assert (len(data.train), len(data.held_out)) == (60, 7)
    assert [s["shape"] for s in data.report["sources"]] == ["preference pairs on transcripts"] * 2
    decoded = str(template.tokenizer.decode(data.held_out[0]["prompt_ids"]))
    assert decoded.startswith("Human: test ")
    assert decoded.endswith("?\n\nAssistant:")


def test_bad_rows_of_a_known_dataset_are_counted_because_nobody_can_mend_them(fake_hub, settings, template) -> None:
    empty = {"prompt": "\n\nHuman: \n\nAssistant:", "response": "y", "chosen": "y", "rejected": "n"}
    fake_hub("Dahoas/rm-static", {"train": [*transcripts(60, "q"), empty]})
    fake_hub("someone/else", {"train": [*transcripts(60, "q"), empty]})
    for _ in range(2):  # read, and from the cache
        data = stage_data.preferences(settings("Dahoas/rm-static", data_split="0,1,0"), template)
        assert data.report["sources"][0]["bad"] == {"prompt is empty": 1}
    with pytest.raises(DataError, match="someone/else, row 61: prompt is empty"):
        stage_data.preferences(settings("someone/else", data_split="0,1,0"), template)


def test_a_named_split_is_all_there_is_and_a_part_of_it_is_held_out(fake_hub, settings, template) -> None:
    fake_hub("someone/pairs", {"train": transcripts(9, "train"), "extra": transcripts(60, "extra")})
    data = stage_data.preferences(settings("someone/pairs@main#extra", data_split="0,1,0"), template)
    assert len(data.train) + len(data.held_out) == 60
    assert fake_hub.asked[-1] == ("someone/pairs#extra", {"revision": "main"})


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        (HubName("HuggingFaceH4/ultrafeedback_binarized"), ("train_prefs", "test_prefs", {})),
        (HubName("openai/summarize_from_feedback"), ("train", "validation", {"name": "comparisons"})),
        (HubName("Salesforce/wikitext"), ("train", "test", {"name": "wikitext-103-raw-v1"})),
        (HubName("Salesforce/wikitext", "wikitext-2-raw-v1"), ("train", "test", {"name": "wikitext-2-raw-v1"})),
        (HubName("Anthropic/hh-rlhf", "helpful-base"), ("train", "test", {"data_dir": "helpful-base"})),
    ],
)
def test_what_is_asked_of_the_hub(name: HubName, asked: tuple[str, str, dict[str, str]], fake_hub) -> None:
    fake_hub(name.name, {"test": [{"a": 1}], "train": [{"a": 1}], asked[0]: [{"a": 1}], asked[1]: [{"a": 1}]})
    assert hub.hub_splits(name) == asked[:2]
    hub.load_split(name, False)
    assert fake_hub.asked[-1] == (f"{name.name}#{asked[0]}", asked[2])


def test_a_dataset_that_cannot_be_had_is_one_line(fake_hub, settings, template) -> None:
    with pytest.raises(DataError, match=r"neither a file or folder here nor a hub dataset .*Couldn't reach"):
        stage_data.preferences(settings("Dahoas/rm-static"), template)


def test_a_repository_with_a_loading_script_is_read_from_the_hubs_own_tables(fake_hub, monkeypatch) -> None:
    """datasets 4 refuses scripts; openai/summarize_from_feedback and openai/webgpt_comparisons still have one."""
    fake_hub("openai/summarize_from_feedback", {"train": [{"a": 1}]})
    load = datasets.load_dataset

    def refuse_scripts(path: str, **options: Any) -> Any:
        if options.get("revision") != "refs/convert/parquet":
            raise RuntimeError("Dataset scripts are no longer supported, but found summarize_from_feedback.py")
        return load(path, **options)

    monkeypatch.setattr(datasets, "load_dataset", refuse_scripts)
    hub.load_split(HubName("openai/summarize_from_feedback"), False)
    assert fake_hub.asked == [
        ("openai/summarize_from_feedback#train", {"data_dir": "comparisons", "revision": "refs/convert/parquet"})
    ]
