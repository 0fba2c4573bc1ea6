"""Run folders, and what is written about them, may bear any name and come from anybody."""

import json
import os
import time

import datasets
import pytest
from PIL import Image

import qskd
from builders_reports import Page, write_run
from builders_runs import edited, tiny_run
from builders_trainer import adapter_of, trainer_of
from qskd.errors import ConfigError, QskdError
from qskd.files import plain_yaml
from qskd.lessons.claim import claimed
from qskd.runs.folder import RunFolder
from qskd.runs.reading import _config, _log, _validation_digest

NAMES = ["../../out", "/tmp/out", "a/b", '<script>alert("x")</script>', "\u202egnp", "x\ny | `z`", "</script>"]
BILLIONS = 'a0: &a0 ["x","x","x","x","x","x","x","x","x"]\n' + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


def put(path, data):
    path.write_bytes(data)
    return path


def renamed(content):
    for category, name in zip(content["categories"], NAMES, strict=False):
        category["name"] = name


@pytest.mark.slow
def test_names_lead_out_of_no_folder_and_into_no_markup(tmp_path, scenes, tiny_folders):
    """One run with bad class names, its predictions, its inspection and its report."""
    data = edited(scenes, tmp_path / "data", renamed, "train", "val")
    run = tmp_path / "runs" / "<iframe onload=x>'\"&"
    options = tiny_run(run, data, max_steps=1, eval_strategy="steps", eval_steps=1)
    qskd.train(model=str(tiny_folders["detr_student"]), **options)
    photo = tmp_path / "photos" / "<img src=x onerror=y>.png"
    photo.parent.mkdir()
    Image.new("RGB", (64, 64)).save(photo)
    before = {path for path in tmp_path.rglob("*") if tmp_path / "out" not in path.parents}
    qskd.predict(str(run), [str(photo.parent)], output_dir=str(tmp_path / "out" / "predicted"), threshold=0.0, top=3)
    qskd.inspect(teacher=str(run / "best"), data=str(data), output_dir=str(tmp_path / "out" / "inspected"), images=2)
    qskd.compare([str(run)], output_dir=str(tmp_path / "out" / "report"))
    after = {path for path in tmp_path.rglob("*") if tmp_path / "out" not in path.parents}
    assert after - before <= {tmp_path / "out"}
    pages = sorted((tmp_path / "out").rglob("*.html"))
    assert len(pages) >= 2
    for path in pages:
        page = Page(path.read_text("utf-8"))
        assert not {"script", "iframe"} & set(page.tags)
        assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
        assert "\u202e" not in path.read_text("utf-8")


@pytest.mark.timeout(20)
def test_a_few_lines_of_yaml_do_not_become_billions(tmp_path):
    path = put(tmp_path / "config.yaml", BILLIONS.encode())
    began = time.perf_counter()
    with pytest.raises(ConfigError, match="alias"):
        _config(path)
    assert time.perf_counter() - began < 2


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", ["a: " + "[" * 50_000, "!!python/object/apply:os.mkdir [canary]", "{" * 20_000])
def test_yaml_makes_plain_values_or_an_error(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is not YAML"):
        _config(put(tmp_path / "config.yaml", text.encode()))
    assert not (tmp_path / "canary").exists()


def test_what_a_run_writes_has_no_aliases(tmp_path):
    shared = ["a", "b"]
    RunFolder(tmp_path).save_config("train", {"one": shared, "two": shared})
    assert plain_yaml((tmp_path / "config.yaml").read_text()) == {"one": shared, "two": shared}


def test_a_log_cut_off_or_nested_without_end_is_read_as_far_as_it_goes(tmp_path):
    lines = [json.dumps({"step": 1}), "[" * 100_000, '{"step": 2, "lo']
    path = put(tmp_path / "metrics.jsonl", "\n".join(lines).encode() + b"\xff\xfe")
    assert list(_log(path)) == [{"step": 1}]


def test_a_summary_nested_without_end_is_refused(tmp_path):
    put(tmp_path / "summary.json", b"[" * 200_000)
    with pytest.raises(QskdError, match=r"summary\.json"):
        qskd.compare([str(tmp_path)], output_dir=str(tmp_path / "report"))


@pytest.mark.parametrize("name", ["best", "last", "checkpoints", "eval", "metrics.jsonl", "runs"])
def test_a_run_folder_leads_no_run_out(tmp_path, name):
    """Also where the link leads to nothing yet, and whether the run is new or resumed."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match=f"{name} is a link"):
        RunFolder(tmp_path / "run").open(None)
    assert not (tmp_path / "outside").exists()


def test_whether_a_folder_can_be_written_to_is_tried_on_no_file_that_is_there(tmp_path):
    mine = put(tmp_path / "mine.txt", b"mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".writable.tmp").symlink_to(mine)
    assert RunFolder(tmp_path / "run").open(None) is None
    assert mine.read_bytes() == b"mine"


def test_a_trainer_of_its_own_is_not_led_out_either(tmp_path, scenes):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is a link"):
        trainer_of(tmp_path / "run", scenes, adapter_of("detr"), max_steps=1).train()
    assert not (tmp_path / "outside.txt").exists()


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "config",
    [
        {"data": "stranger/tracker"},
        {"data": ["x"]},
        {"data": 5},
        {"data": "a\0b"},
        {"data": ".", "data_format": 3, "val_split": ["val"]},
        {"val_annotations": "/dev/zero", "val_images": "/"},
        {"val_annotations": "pipe", "val_images": "."},
        {"val_annotations": 7, "val_images": {}},
        {"val_annotations": "x" * 5000, "val_images": "."},
        {"data": "stranger/tracker", "box_frame": ["content"], "teacher": {"a": 1}},
    ],
    ids=str,
)
def test_a_report_fetches_and_reads_nothing_that_a_config_names_but_data(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    asked = []
    for name in ("load_dataset", "load_dataset_builder"):
        monkeypatch.setattr(datasets, name, lambda *given, **options: asked.append(given))
    run = write_run(tmp_path / "run", config=config)
    made = qskd.compare([str(run)], output_dir=str(tmp_path / "report"), latency=False)
    assert "Give --data" in made.markdown.read_text()
    assert not asked


def test_an_annotation_file_of_any_length_is_not_read_whole(tmp_path):
    with (tmp_path / "val.json").open("wb") as file:
        file.truncate(2**40)  # a hole
    assert _validation_digest({"val_annotations": str(tmp_path / "val.json")}) is None


@pytest.mark.timeout(20)
def test_a_config_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.yaml")
    assert _config(tmp_path / "config.yaml") == {}


def test_a_cache_leads_no_pass_out(tmp_path):
    mine = put(tmp_path / "mine.txt", b"mine")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".lock").symlink_to(mine)
    with pytest.raises(ConfigError, match="is a link"), claimed(tmp_path / "cache"):
        pass
    assert mine.read_bytes() == b"mine"
