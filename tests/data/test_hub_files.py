"""A Hugging Face dataset reads its own files, whatever its descriptions and rows name."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets import Dataset

from builders_formats import encoded, put
from builders_hub import class_label, hub_dataset, hub_features, value
from qskd.data.formats.hub import HubSource
from qskd.data.sources import open_source
from qskd.errors import DataError

ADDRESS = "http://127.0.0.1:9/x.parquet"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """Somebody's own table."""
    (tmp_path / "private").mkdir()
    hub_dataset("train", class_label()).to_parquet(str(tmp_path / "private" / "table.parquet"))
    return tmp_path / "private" / "table.parquet"


@pytest.mark.parametrize("where", ["absolute", "relative", "address"])
def test_a_readme_names_no_files_elsewhere(where: str, private: Path, tmp_path: Path) -> None:
    named = {"absolute": str(private), "relative": "../private/table.parquet", "address": ADDRESS}[where]
    card = f'---\nconfigs:\n- config_name: default\n  data_files: "{named}"\n---\n'
    hub_dataset("val", class_label()).to_parquet(put(tmp_path / "data" / "val.parquet", b""))
    put(tmp_path / "data" / "README.md", card.encode())
    source = open_source(tmp_path / "data")
    assert source.format == "hf"
    assert source.splits == ("val",)
    assert len(source.load("val")) == len(hub_dataset("val", class_label()))


def test_a_table_that_is_a_link_to_elsewhere_is_refused(private: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").symlink_to(private)
    with pytest.raises(DataError, match=r"train\.parquet' is outside of it"):
        open_source(tmp_path / "data")


def test_a_table_of_a_snapshot_is_a_link_into_the_cache(
    private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(private.parent))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").symlink_to(private)
    assert len(open_source(tmp_path / "data").load("train")) == len(hub_dataset("train", class_label()))


@pytest.mark.parametrize("where", ["absolute", "relative"])
@pytest.mark.parametrize("file", ["state.json", "dataset_dict.json"])
def test_a_saved_dataset_names_no_files_elsewhere(where: str, file: str, tmp_path: Path) -> None:
    whole = hub_dataset("train", class_label())
    whole.save_to_disk(str(tmp_path / "private"))
    outside = str(tmp_path / "private") if where == "absolute" else "../private"
    if file == "state.json":
        whole.save_to_disk(str(tmp_path / "data"))
        state = json.loads((tmp_path / "data" / file).read_text())
        state["_data_files"] = [{"filename": f"{outside}/{state['_data_files'][0]['filename']}"}]
        put(tmp_path / "data" / file, json.dumps(state).encode())
    else:
        put(tmp_path / "data" / file, json.dumps({"splits": [outside]}).encode())
    with pytest.raises(DataError, match="is outside of it"):
        open_source(tmp_path / "data")


def row_of(path: Path) -> Any:
    """A dataset of one row whose image is a file."""
    row = {"image": {"bytes": None, "path": str(path)}, "objects": {"bbox": [[1.0, 2, 3, 4]], "category": [0]}}
    return Dataset.from_list([row], hub_features(value("int64")))


def of_hub(monkeypatch: pytest.MonkeyPatch, loaded: Any, *files: str) -> None:
    """The hub as if it held this."""
    config = SimpleNamespace(data_files={"train": list(files)} if files else None)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: SimpleNamespace(config=config))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: loaded)


def test_a_row_of_the_hub_reads_what_was_downloaded_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = put(tmp_path / "kept" / "photo.jpg", encoded("a.jpg", 64, 32))
    of_hub(monkeypatch, row_of(photo))
    with pytest.raises(DataError, match=r"row 0 of train: its image '.*photo\.jpg' is outside of what was downloaded"):
        HubSource.on_hub("somebody/set").load("train")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "kept"))
    index = HubSource.on_hub("somebody/set").load("train")
    assert index.images[0].blob() == photo.read_bytes()


@pytest.mark.parametrize("named", ["/home/me/table.parquet", "file:///home/me/table.parquet", ADDRESS])
def test_a_dataset_of_the_hub_names_files_of_the_hub_alone(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_hub(monkeypatch, hub_dataset("train", class_label()), "hf://datasets/somebody/set@main/train.parquet", named)
    with pytest.raises(DataError, match="which is no file of the hub"):
        HubSource.on_hub("somebody/set")
    of_hub(monkeypatch, hub_dataset("train", class_label()), "hf://datasets/somebody/set@main/train.parquet")
    assert HubSource.on_hub("somebody/set").splits == ("train",)
