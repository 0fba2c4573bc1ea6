"""`predict`: the boxes that `eval` scores, as files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.utils.data import DataLoader

import qskd
from builders_runs import NAMES
from builders_videos import write_video
from qskd.cli import main
from qskd.data.batch import collate
from qskd.data.formats.coco import load_coco
from qskd.data.images import read_whatever_size
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, ConfigError, DataError, LabelMapError
from qskd.evaluation.coco_map import CocoEvaluator
from qskd.evaluation.streaming import evaluate_detector
from qskd.models.loading import load_model
from qskd.runs import building

TEACHER = Path(qskd.__file__).parent / "assets" / "demo_teacher"


def read(folder: Path) -> tuple[list[dict], dict]:
    return json.loads((folder / "predictions.json").read_text()), json.loads(
        (folder / "predictions_info.json").read_text()
    )


@pytest.fixture(scope="module")
def everything(scenes, tmp_path_factory):
    """All boxes on the validation scenes, whatever their scores."""
    folder = tmp_path_factory.mktemp("everything")
    qskd.predict(TEACHER, scenes / "images" / "val", output_dir=folder, threshold=0, batch_size=4, device="cpu")
    return folder


def test_the_boxes_score_what_eval_says(scenes, everything):
    """pycocotools on the file, with the ids of the data, against `qskd eval`."""
    rows, info = read(everything)
    annotations = scenes / "annotations" / "instances_val.json"
    truth = COCO(str(annotations))
    image_ids = {Path(image["file_name"]).name: image["id"] for image in truth.dataset["images"]}
    category_ids = {category["name"]: category["id"] for category in truth.dataset["categories"]}
    names = {category["id"]: category["name"] for category in info["categories"]}
    results = [
        row | {"image_id": image_ids[row["file_name"]], "category_id": category_ids[names[row["category_id"]]]}
        for row in rows
    ]
    scored = COCOeval(truth, truth.loadRes(results), "bbox")
    scored.evaluate()
    scored.accumulate()
    scored.summarize()
    wanted = qskd.evaluate(model=TEACHER, data=scenes, batch_size=4)
    assert wanted["AP"] > 0.3
    keys = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100")
    for value, key in zip(scored.stats, keys, strict=False):
        assert value == pytest.approx(-1 if wanted[key] is None else wanted[key], abs=1e-9), key
    assert len(rows) == wanted["num_detections"]


@pytest.mark.parametrize("library", ["pycocotools", "faster_coco_eval"])
def test_the_info_file_is_ground_truth_that_the_results_fit(everything, library):
    module = pytest.importorskip("faster_coco_eval").COCO if library == "faster_coco_eval" else COCO
    truth = module(str(everything / "predictions_info.json"))
    results = truth.loadRes(str(everything / "predictions.json"))
    assert len(results.getImgIds()) == 6
    assert len(results.getAnnIds()) == len(read(everything)[0]) > 100
    assert [category["name"] for category in results.loadCats(results.getCatIds())] == list(NAMES)


def shapes_of_many_sizes(scenes: Path, folder: Path) -> Path:
    """The scenes cut to different sizes, in COCO form without objects."""
    (folder / "images").mkdir(parents=True)
    images = []
    for number, path in enumerate(sorted((scenes / "images" / "val").iterdir()), start=1):
        size = (64 - 6 * number, 40 + 4 * number)
        Image.open(path).crop((0, 0, *size)).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    content = {"images": images, "annotations": [], "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("rt_detr_teacher", {"image_size": 64}),
        ("detr_teacher", {"image_size": 64, "max_image_size": 96}),  # softmax, padded
        ("detr_teacher", {"image_size": 64, "max_image_size": 96, "box_frame": "canvas"}),
        ("deformable_teacher", {"image_size": 48, "max_image_size": 96}),  # sigmoid, padded
        ("deformable_teacher", {}),
    ],
)
def test_the_boxes_are_those_of_eval_whatever_the_sizes(scenes, tiny_folders, tmp_path, model, sizes):
    data = shapes_of_many_sizes(scenes, tmp_path / "data")
    out = tmp_path / "out"
    found = qskd.predict(
        tiny_folders[model], data / "images", output_dir=out, threshold=0, batch_size=4, device="cpu", **sizes
    )
    index = load_coco(data / "truth.json", data / "images")
    adapter = load_model(tiny_folders[model], box_frame=sizes.get("box_frame", "content"))
    size = ImageSize(square=64)
    if "max_image_size" in sizes:
        size = ImageSize(shortest_edge=sizes["image_size"], longest_edge=96)
    evaluator = CocoEvaluator(index.ground_truth(), index.category_ids)
    batches = DataLoader(building.evaluation_dataset(index, size), batch_size=4, collate_fn=collate)
    evaluate_detector(adapter, batches, evaluator)
    state = evaluator.state()
    rows, info = read(out)
    assert found.images == 6
    assert [image["id"] for image in info["images"]] == state.image_ids.tolist()
    assert [row["image_id"] for row in rows] == np.repeat(state.image_ids, state.counts).tolist()
    np.testing.assert_array_equal([row["score"] for row in rows], state.rows[:, 0])
    np.testing.assert_array_equal([row["category_id"] for row in rows], state.rows[:, 1])
    corners = state.rows[:, 2:].astype(np.float64)
    corners[:, 2:] -= corners[:, :2]
    np.testing.assert_array_equal([row["bbox"] for row in rows], corners)
    drawn = sorted(path.name for path in (out / "images").iterdir())
    assert drawn == [f"{number}.png" for number in range(1, 7)]
    for image in info["images"]:
        assert Image.open(out / "images" / image["file_name"]).size == (image["width"], image["height"])


def test_threshold_and_top_and_classes_keep_a_part_of_all(scenes, everything, tmp_path):
    rows, _ = read(everything)
    kept = [row for row in rows if row["score"] >= 0.2 and row["category_id"] in (1, 4)]
    wanted = [row for image in range(1, 7) for row in [row for row in kept if row["image_id"] == image][:2]]
    assert 0 < len(wanted) < len(kept)
    found = qskd.predict(
        TEACHER,
        [scenes / "images" / "val"],
        output_dir=tmp_path,
        threshold=0.2,
        top=2,
        classes=["Ring", "square"],
        batch_size=4,
        device="cpu",
    )
    assert read(tmp_path)[0] == wanted
    assert {name: count for name, count in found.boxes.items() if count} == {
        "square": sum(row["category_id"] == 1 for row in wanted),
        "ring": sum(row["category_id"] == 4 for row in wanted),
    }
    assert found.holding["ring"] == len({row["image_id"] for row in wanted if row["category_id"] == 4})


def test_one_class_gets_all_places_of_an_image(scenes, everything, tmp_path):
    """Also those that other classes took: 100 of 6 x Q scores were kept."""
    found = qskd.predict(
        TEACHER, scenes / "images" / "val", output_dir=tmp_path, threshold=0, classes=["star"], device="cpu"
    )
    before = sum(row["category_id"] == 3 for row in read(everything)[0])
    assert found.boxes["star"] > before
    assert sum(found.boxes.values()) == found.boxes["star"]


def test_of_a_softmax_head_only_queries_that_mean_the_class_are_kept(scenes, tiny_folders, tmp_path):
    options = {"threshold": 0, "device": "cpu", "pictures": False}
    images = scenes / "images" / "val"
    qskd.predict(tiny_folders["detr_teacher"], images, output_dir=tmp_path / "all", **options)
    rows = read(tmp_path / "all")[0]
    name = NAMES[rows[0]["category_id"]]
    qskd.predict(tiny_folders["detr_teacher"], images, output_dir=tmp_path / "one", classes=[name], **options)
    assert read(tmp_path / "one")[0] == [row for row in rows if row["category_id"] == rows[0]["category_id"]]


def test_unused_rows_of_a_head_are_never_found_and_ids_are_the_heads(scenes, everything, tmp_path):
    shutil.copytree(TEACHER, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["id2label"]["1"] = "N/A"
    config["label2id"] = {name: int(number) for number, name in config["id2label"].items()}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    qskd.predict(tmp_path / "model", scenes / "images" / "val", output_dir=out, threshold=0.1, batch_size=4)
    rows, info = read(out)
    assert [category["id"] for category in info["categories"]] == [0, 2, 3, 4, 5]
    assert rows == [row for row in read(everything)[0] if row["score"] >= 0.1 and row["category_id"] != 1]


@pytest.mark.parametrize("frame", ["content", "canvas"])
def test_a_run_folder_stands_for_its_best_model_and_its_box_frame(scenes, tmp_path, frame):
    run = tmp_path / "run"
    shutil.copytree(TEACHER, run / "best")
    (run / "config.yaml").write_text(f"box_frame: {frame}\n")
    qskd.predict(run, scenes / "images" / "val", output_dir=tmp_path / "out", pictures=False)
    _, info = read(tmp_path / "out")
    assert info["model"] == str(run / "best")
    assert info["box_frame"] == frame
    qskd.predict(run, scenes / "images" / "val", output_dir=tmp_path / "out", pictures=False, box_frame="content")
    assert read(tmp_path / "out")[1]["box_frame"] == "content"
    (run / "best").rename(run / "last")
    qskd.predict(run, scenes / "images" / "val", output_dir=tmp_path / "out", pictures=False)
    assert read(tmp_path / "out")[1]["model"] == str(run / "last")


def as_upright_png(path: Path, folder: Path) -> None:
    pixels = read_whatever_size(path).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(folder / f"{path.stem}.png")


def test_every_kind_of_image_is_seen_as_its_upright_rgb_pixels(scenes, tmp_path):
    source = Image.open(scenes / "images" / "val" / "000001.jpg").convert("RGB").crop((0, 0, 64, 48))
    odd, plain = tmp_path / "odd", tmp_path / "plain"
    odd.mkdir()
    plain.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    source.save(odd / "turned.jpg", exif=exif)
    source.convert("L").save(odd / "grey.png")
    source.convert("P").save(odd / "palette.gif")
    source.convert("CMYK").save(odd / "cmyk.tif")
    source.convert("RGBA").save(odd / "alpha.webp", lossless=True)
    Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257).save(odd / "deep.png")
    for path in odd.iterdir():
        as_upright_png(path, plain)
    options = {"threshold": 0, "device": "cpu", "batch_size": 1}
    qskd.predict(TEACHER, odd, output_dir=tmp_path / "a", **options)
    qskd.predict(TEACHER, plain, output_dir=tmp_path / "b", **options)

    def by_stem(folder):
        return sorted([[Path(r["file_name"]).stem, r["score"], r["category_id"], r["bbox"]] for r in read(folder)[0]])

    assert by_stem(tmp_path / "a") == by_stem(tmp_path / "b")
    info = {image["file_name"]: (image["width"], image["height"]) for image in read(tmp_path / "a")[1]["images"]}
    assert info.pop("turned.jpg") == (48, 64)
    assert set(info.values()) == {(64, 48)}
    drawn = {path.name for path in (tmp_path / "a" / "images").iterdir()}
    assert drawn == {"turned.jpg", "grey.png", "palette.png", "cmyk.png", "alpha.png", "deep.png"}
    assert Image.open(tmp_path / "a" / "images" / "turned.jpg").size == (48, 64)


def test_no_more_images_are_held_than_two_batches(scenes, tmp_path, monkeypatch):
    """One that is looked at and one that is read ahead."""
    from qskd.runs import seeing

    read_so_far, seen_so_far, most = 0, 0, 0
    true_read, true_find = seeing.read_whatever_size, seeing.Seeing._find

    def counted_read(path):
        nonlocal read_so_far
        read_so_far += 1
        return true_read(path)

    def counted_find(self, images):
        nonlocal seen_so_far, most
        most = max(most, read_so_far - seen_so_far)
        seen_so_far += len(images)
        return true_find(self, images)

    monkeypatch.setattr(seeing, "read_whatever_size", counted_read)
    monkeypatch.setattr(seeing.Seeing, "_find", counted_find)
    qskd.predict(TEACHER, scenes / "images", output_dir=tmp_path, batch_size=2, pictures=False)
    assert read_so_far == seen_so_far == 22
    assert most <= 4


def test_a_video_is_seen_frame_by_frame(scenes, tmp_path):
    pytest.importorskip("av")
    frames = [np.asarray(Image.open(path).convert("RGB")) for path in sorted((scenes / "images" / "val").iterdir())]
    write_video(tmp_path / "in" / "a b.avi", frames, rate=5)
    shutil.copy(scenes / "images" / "val" / "000001.jpg", tmp_path / "in")
    out = tmp_path / "out"
    found = qskd.predict(TEACHER, tmp_path / "in", output_dir=out, batch_size=4)
    assert (found.images, found.frames, found.failures) == (1, 6, {})
    rows = json.loads((out / "videos" / "a b.json").read_text())
    _, info = read(out)
    (video,) = info["videos"]
    assert video["predictions"] == "videos/a b.json"
    assert (video["file_name"], video["frames"], video["width"], video["height"]) == ("a b.avi", 6, 64, 64)
    assert rows
    assert all(row["seconds"] == pytest.approx(row["frame"] / 5, abs=1e-3) for row in rows)
    assert found.boxes[NAMES[1]] >= sum(row["category_id"] == 1 for row in rows)
    from qskd.data.videos import read_frames

    drawn = list(read_frames(out / "videos" / "a b.mp4"))
    assert len(drawn) == 6
    first = next(row for row in rows if row["frame"] == rows[0]["frame"])
    shown = drawn[first["frame"]].pixels.permute(1, 2, 0).numpy().astype(int)
    assert np.abs(shown - frames[first["frame"]].astype(int)).max() > 80  # something was drawn


def test_a_damaged_video_is_counted_and_the_rest_goes_on(scenes, tmp_path):
    pytest.importorskip("av")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"nothing")
    shutil.copy(scenes / "images" / "val" / "000001.jpg", tmp_path / "in")
    found = qskd.predict(TEACHER, tmp_path / "in", output_dir=tmp_path / "out")
    assert list(found.failures) == ["a.mp4"]
    assert found.images == 1
    assert read(tmp_path / "out")[1]["videos"] == []


def test_a_video_that_is_cut_off_keeps_its_frames_and_is_counted(scenes, tmp_path, capsys):
    pytest.importorskip("av")
    frames = list(np.random.default_rng(0).integers(0, 255, (20, 64, 64, 3), dtype=np.uint8))
    path = write_video(tmp_path / "in" / "a.mp4", frames, index_first=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    command = ["predict", str(TEACHER), str(path), "--output_dir", str(out), "--batch_size", "7", "--threshold", "0"]
    assert main(command) == 1
    assert "a.mp4: the video cannot be read to its end" in capsys.readouterr().err
    (video,) = read(out)[1]["videos"]
    assert 3 <= video["frames"] < 20
    assert video["frames"] % 7, "no whole number of batches, so that the last frames are not lost with the error"
    rows = json.loads((out / "videos" / "a.json").read_text())
    assert {row["frame"] for row in rows} == set(range(video["frames"]))
    assert [row["file_name"] for row in read(out)[1]["unreadable"]] == ["a.mp4"]


def test_a_diverged_model_is_an_error(scenes, tmp_path, monkeypatch):
    from qskd.evaluation import predictor

    real = predictor.detections_of

    def broken(*arguments):
        return [one._replace(scores=one.scores * np.nan) for one in real(*arguments)]

    monkeypatch.setattr(predictor, "detections_of", broken)
    with pytest.raises(CheckpointError, match="not finite"):
        qskd.predict(TEACHER, scenes / "images" / "val", output_dir=tmp_path / "out")
    assert not (tmp_path / "out" / "predictions.json").exists()


@pytest.mark.parametrize("name", ["predictions.json", "predictions_info.json", "images"])
def test_a_result_that_cannot_be_written_is_named(scenes, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    if name == "images":
        (tmp_path / "out" / name).rmdir()
        (tmp_path / "out" / name).touch()
    with pytest.raises(DataError, match=r"out.* cannot be written"):
        qskd.predict(TEACHER, scenes / "images" / "val", output_dir=tmp_path / "out")


def test_too_large_a_batch_says_what_to_do(scenes, tmp_path, monkeypatch):
    from qskd.evaluation.predictor import AdapterPredictor

    def full(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AdapterPredictor, "predict", full)
    with pytest.raises(ConfigError, match=r"6 images at a time.+smaller --batch_size"):
        qskd.predict(TEACHER, scenes / "images" / "val", output_dir=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"threshold": 2}, ConfigError, "--threshold is 2"),
        ({"threshold": float("nan")}, ConfigError, "--threshold is nan"),
        ({"top": 0}, ConfigError, "--top is 0"),
        ({"batch_size": 0}, ConfigError, "--batch_size is 0"),
        ({"classes": ["circle", "trangle"]}, ConfigError, "no class 'trangle'. Did you mean 'triangle'"),
        ({"classes": "circle"}, ConfigError, "give a list"),
        ({"classes": ["circle", "Circle"]}, LabelMapError, "the same name"),
        ({"image_size": 33}, ConfigError, "Try 32"),
        ({"image_size": 64, "max_image_size": 96}, ConfigError, "rt_detr reads no padding mask"),
        ({"max_image_size": 96}, ConfigError, "give the shortest"),
        ({"device": "gpu"}, ConfigError, "--device gpu cannot be used"),
        ({"device": "meta"}, ConfigError, "--device meta cannot be used"),
        ({"treshold": 0.2}, ConfigError, "no option 'treshold'. Did you mean 'threshold'"),
        ({"output_dir": "config.json"}, ConfigError, "is a file"),
        ({"output_dir": "config.json/deep"}, ConfigError, "cannot be made"),
    ],
)
def test_bad_options_are_refused(scenes, tmp_path, monkeypatch, options, kind, told):
    monkeypatch.chdir(tmp_path)
    Path("config.json").touch()
    with pytest.raises(kind, match=told):
        qskd.predict(TEACHER, scenes / "images" / "val", **options)
    assert os.listdir(tmp_path) == ["config.json"]


def test_a_configuration_is_no_trained_model(scenes, tmp_path):
    with pytest.raises(ConfigError, match="give a trained model"):
        qskd.predict("student.json", scenes / "images", output_dir=tmp_path)
