"""Files of rows as they come: compressed, as Arrow, saved by `datasets`, at an address."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict

from data.config import SourceSettings
from data.contents import fingerprint, rows
from data.example import RowError
from data.preflight import look_at
from data.row_files import kind_of
from data.sources import parse
from data.stage_data import preferences
from data.store import open_store
from rlhf.errors import DataError

PAIRS = [{"prompt": f"q {i} é", "chosen": f"yes {i}", "rejected": "no"} for i in range(700)]
LINES = "".join(json.dumps(row) + "\n" for row in PAIRS).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda content: pa.Codec("zstd").compress(content).to_pybytes(),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def read(source: Any) -> list[Any]:
    return [row for _, row in rows(parse(str(source)))]


@pytest.fixture
def here(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


# --- compressed text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl.gz", (".jsonl", ".gz")),
        ("b/A.CSV.ZST", (".csv", ".zst")),
        ("a.parquet", (".parquet", "")),
        ("a.parquet.gz", None),  # cannot be read from its end
        ("a.gz", None),
        ("a.txt", None),
    ],
)
def test_the_kind_of_a_file(name: str, kind: tuple[str, str] | None) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".json", "wrapped.json", ".csv"])
def test_compressed_text_is_read_with_its_lines(packing: str, kind: str, here: Any, write: Any) -> None:
    content = {
        ".jsonl": LINES,
        ".json": json.dumps(PAIRS).encode(),
        "wrapped.json": json.dumps({"version": 1, "data": PAIRS}, indent=1).encode(),
        ".csv": ("prompt,chosen,rejected\n" + "".join(f"{','.join(p.values())}\n" for p in PAIRS)).encode(),
    }[kind]
    path = here(f"train{kind}{packing}", PACK[packing](content))
    assert read(path) == PAIRS
    places = [str(where) for where, _ in rows(parse(str(path)))]
    line = {".jsonl": "line 2", ".csv": "line 3"}.get(kind, "row 2")
    assert places[1] == f"{path}, {line}"


@pytest.mark.parametrize("packing", PACK)
def test_a_compressed_file_that_is_cut_short_is_named(packing: str, here: Any) -> None:
    path = here(f"a.jsonl{packing}", PACK[packing](LINES)[:-20])
    with pytest.raises(DataError, match=rf"a\.jsonl\{packing} is cut short: what is compressed with \w+ has no end"):
        read(path)
    with pytest.raises(DataError, match="is cut short"):
        open_store(parse(str(path)), SourceSettings(skip_bad_rows=True, data_cache_dir=path.parent / "cache"))


@pytest.mark.parametrize("packing", PACK)
def test_a_file_that_is_not_compressed_as_its_name_says(packing: str, here: Any) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl\{packing} is not compressed with \w+, as its name says"):
        read(here(f"a.jsonl{packing}", LINES))


@pytest.mark.parametrize("packing", PACK)
def test_a_packed_file_whose_name_does_not_say_so(packing: str, here: Any) -> None:
    with pytest.raises(
        DataError, match=rf"a\.jsonl is compressed with .*unpack it first.*or call it \S+a\.jsonl\{packing}"
    ):
        read(here("a.jsonl", PACK[packing](LINES)))


def test_what_is_inside_of_a_compressed_file_is_looked_at(here: Any) -> None:
    with pytest.raises(DataError, match=r"is UTF-16 text; save it as UTF-8 \(iconv -f UTF-16 -t UTF-8"):
        read(here("a.jsonl.gz", gzip.compress(LINES.decode().encode("utf-16"))))
    [row] = read(here("b.jsonl.zst", PACK[".zst"](json.dumps({"prompt": "é"}, ensure_ascii=False).encode("latin-1"))))
    assert isinstance(row, RowError)
    assert "iconv -f LATIN1 -t UTF-8 OLD > NEW" in str(row)


def test_compressed_files_of_a_folder_are_held_out_by_their_names(here: Any) -> None:
    folder = here("f/test.jsonl.gz", gzip.compress(LINES)).parent
    here("f/part-0.csv.zst", PACK[".zst"](b"prompt\nq\n"))
    here("f/part-1.jsonl", LINES)
    source = parse(str(folder))
    assert [Path(f.name).name for f in source.files] == ["part-0.csv.zst", "part-1.jsonl"]
    assert [Path(f.name).name for f in source.held_out_files] == ["test.jsonl.gz"]


def test_files_of_one_folder_have_columns_of_their_own_and_some_come_late(here: Any, tmp_path: Path) -> None:
    late = [{"prompt": f"p {i}", "chosen": "a"} for i in range(1500)] + [{"prompt": "x", "chosen": "a", "system": "S"}]
    here("f/a.jsonl.gz", gzip.compress("".join(json.dumps(row) + "\n" for row in late).encode()))
    here("f/b.jsonl", json.dumps({"instruction": "i", "output": "o"}).encode())
    store = open_store(parse(str(tmp_path / "f")), SourceSettings(data_cache_dir=tmp_path / "cache"))
    assert len(store.dataset) == 1502
    assert [json.loads(store.dataset[i]["prompt"])[0] for i in (1500, 1501)] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "i"},
    ]


# --- Arrow ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", ["new_file", "new_stream"])
def test_arrow_files_and_streams(new: str, tmp_path: Path) -> None:
    path, table = tmp_path / "a.arrow", pa.Table.from_pylist(PAIRS)
    with getattr(pa.ipc, new)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=600)
    assert read(path) == PAIRS
    assert str(next(iter(rows(parse(str(path)))))[0]) == f"{path}, row 1"
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(DataError, match=r"a\.arrow is (cut short|not a readable Arrow file) \(after row \d+\)"):
        read(path)


def test_an_arrow_file_by_another_name_is_named(tmp_path: Path) -> None:
    with pa.ipc.new_stream(str(tmp_path / "a.jsonl"), pa.schema({"prompt": pa.string()})):
        pass
    with pytest.raises(DataError, match=r"a\.jsonl is an Arrow stream; call it \.arrow"):
        read(tmp_path / "a.jsonl")


def test_a_folder_of_save_to_disk(tmp_path: Path) -> None:
    """Its JSON files are no rows, and tables that other programs left beside its own are not either."""
    dataset = Dataset.from_list(PAIRS)
    dataset.save_to_disk(tmp_path / "one", num_shards=2)
    Dataset.from_list(PAIRS[:5]).save_to_disk(tmp_path / "other")
    (tmp_path / "other" / "data-00000-of-00001.arrow").rename(tmp_path / "one" / "cache-1234.arrow")
    assert read(tmp_path / "one") == PAIRS
    assert len(parse(str(tmp_path / "one")).files) == 2


def test_a_saved_dataset_of_several_splits(tmp_path: Path, settings: Any, template: Any) -> None:
    parts = {"train": PAIRS[:600], "validation": PAIRS[600:620], "test": PAIRS[620:]}
    DatasetDict({n: Dataset.from_list(part) for n, part in parts.items()}).save_to_disk(tmp_path / "splits")
    source = parse(str(tmp_path / "splits"))
    assert [row["prompt"] for _, row in rows(source)] == [p["prompt"] for p in parts["train"]]  # type: ignore[index]
    assert [row["prompt"] for _, row in rows(source, held_out=True)] == [p["prompt"] for p in parts["test"]]  # type: ignore[index]
    data = preferences(settings(str(tmp_path / "splits"), data_split="0,1,0"), template)
    assert (len(data.train), len(data.held_out)) == (600, 80)


def test_splits_without_one_to_train_on_are_refused(tmp_path: Path) -> None:
    DatasetDict({n: Dataset.from_list(PAIRS[:2]) for n in ("sft", "prefs")}).save_to_disk(tmp_path / "splits")
    with pytest.raises(DataError, match="has the splits sft, prefs; give the folder of the one to train on"):
        parse(str(tmp_path / "splits"))
    assert read(tmp_path / "splits" / "prefs") == PAIRS[:2]
    (tmp_path / "splits" / "prefs" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state\.json is not what datasets\.save_to_disk writes"):
        parse(str(tmp_path / "splits" / "prefs"))


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[Any]:
    """A file system in memory, as s3:// or gs:// is one elsewhere."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_files_at_an_address(memory: Any, tmp_path: Path, settings: Any, template: Any) -> None:
    memory.pipe("/bucket/rows/part-0.jsonl.gz", gzip.compress(LINES))
    memory.pipe("/bucket/rows/test/part-0.jsonl", LINES[:200].rpartition(b"\n")[0])
    memory.pipe("/bucket/rows/readme.md", b"no rows")
    source = parse("memory://bucket/rows:2")
    assert (source.name, source.weight) == ("memory://bucket/rows", 2.0)
    assert [f.name for f in source.files] == ["memory:///bucket/rows/part-0.jsonl.gz"]
    assert [f.name for f in source.held_out_files] == ["memory:///bucket/rows/test/part-0.jsonl"]
    assert read("memory://bucket/rows/*.gz") == PAIRS
    assert str(next(iter(rows(source)))[0]) == "memory:///bucket/rows/part-0.jsonl.gz, line 1"
    assert len(preferences(settings("memory://bucket/rows", data_split="0,1,0"), template).train) > 600


def test_tables_at_an_address(memory: Any, tmp_path: Path) -> None:
    Dataset.from_list(PAIRS).to_parquet(tmp_path / "a.parquet")
    memory.pipe("/a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert read("memory://a.parquet") == PAIRS
    assert read(f"file://{tmp_path}/a.parquet") == PAIRS


def test_another_content_at_an_address_is_read_again(memory: Any) -> None:
    memory.pipe("/a.jsonl", LINES)
    first = fingerprint(parse("memory://a.jsonl"))
    assert first == fingerprint(parse("memory://a.jsonl"))
    memory.pipe("/a.jsonl", LINES[:-1] + b" ")
    assert first != fingerprint(parse("memory://a.jsonl"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://none.jsonl", "memory://none.jsonl does not exist"),
        ("memory://folder/*.jsonl", r"memory://folder/\*.jsonl does not exist"),
        ("nonsense://a.jsonl", "nonsense://a.jsonl cannot be opened: .*[Pp]rotocol"),
        ("s3://bucket/a.jsonl", r"s3://bucket/a\.jsonl cannot be opened: a package is missing \(.*s3fs"),
    ],
)
def test_an_address_that_cannot_be_opened_is_one_line(address: str, message: str, memory: Any, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    found = look_at([address], SourceSettings())
    assert len(found) == 1
    assert "\n" not in found[0]
    with pytest.raises(DataError, match=message):
        parse(address)
