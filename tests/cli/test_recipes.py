"""The recipes in ``examples/configs/coco_*.yaml``: what they name exists, and each of them runs, for one step."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import ResNetConfig, ResNetForImageClassification, get_scheduler

from builders import MODELS
from qskd.cli import main
from qskd.cli.parsing import parse
from qskd.data.synthetic import class_names
from qskd.data.transforms import ImageSize
from qskd.models.families import FAMILIES, adapter_class
from qskd.models.known import known_checkpoints
from qskd.models.processors import save_model
from qskd.runs.options import DataOptions, MethodOptions, PairOptions
from qskd.trainer import DistillationConfig

ROOT = Path(__file__).parents[2]
RECIPES = {path.stem: path for path in sorted((ROOT / "examples" / "configs").glob("coco_*.yaml"))}
KNOWN = {row.hub_id: row for row in known_checkpoints()}
TRAIN_IMAGES, GPUS = 118_287, 8  # of COCO train2017; of the node that the recipes are for
WIDTH = 8 / 64  # of the student's backbone; ResNets begin with 64 channels
DEPTHS = {"resnet18": ("basic", [2, 2, 2, 2], 1), "resnet50": ("bottleneck", [3, 4, 6, 3], 4)}
QUICK = {"coco_conditional_detr_r50_r18", "coco_rt_detr_r50_r18", "coco_lw_detr_medium_tiny"}
each_recipe = pytest.mark.parametrize("name", RECIPES)


def options_of(name: str) -> dict:
    return yaml.safe_load(RECIPES[name].read_text(encoding="utf-8"))


def family_of(name: str) -> str:
    return KNOWN[options_of(name)["teacher"]].family


def comment_of(name: str) -> str:
    """The comment at the file's head in one line."""
    lines = RECIPES[name].read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def test_every_family_with_coco_checkpoints_has_a_recipe():
    with_coco = {row.family for row in KNOWN.values() if row.ap is not None}
    assert {family_of(name) for name in RECIPES} == with_coco
    assert set(FAMILIES) - with_coco == {"table-transformer"}


@each_recipe
def test_a_recipe_is_named_after_its_family_and_stands_in_the_docs(name):
    assert name.startswith(f"coco_{family_of(name).replace('-', '_')}_")
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"`{name}.yaml`" in page
    assert f"--config examples/configs/{name}.yaml" in comment_of(name)


@each_recipe
def test_the_comment_tells_the_published_ap_of_teacher_and_student(name):
    options = options_of(name)
    assert f"Teacher: {KNOWN[options['teacher']].ap} AP" in comment_of(name)
    student = KNOWN[options["student"]].ap if "student" in options else None
    assert student is None or f"{student} AP (" in comment_of(name)


@each_recipe
def test_teacher_and_student_are_published_and_share_a_stride(name):
    options = options_of(name)
    teacher = KNOWN[options["teacher"]]
    if "student" in options:
        student = KNOWN[options["student"]]
        assert student.family == teacher.family
        assert student.ap is None or student.ap < teacher.ap
        assert set(student.strides) & set(teacher.strides)
    else:
        backbone = options["student_backbone"]
        assert options["student_backbone_weights"] == f"microsoft/{backbone.replace('resnet', 'resnet-')}"
        assert 32 in teacher.strides  # where a backbone by name ends


def parsed(name: str, folder: Path) -> tuple:
    arguments = ["--config", str(RECIPES[name]), "--use_cpu", "--output_dir", str(folder)]
    return parse("distill", "", (PairOptions, DataOptions, MethodOptions, DistillationConfig), arguments)


@each_recipe
def test_every_option_is_known_and_read_as_written(name, tmp_path):
    pair, data, method, config = parsed(name, tmp_path)
    given = {**vars(pair), **vars(data), **vars(method), **config.given}
    for option, value in options_of(name).items():
        wanted = type(given[option])(value) if isinstance(value, str) else value  # 1e-4 is a text in YAML
        assert given[option] == wanted


@pytest.mark.parametrize("name", [name for name in RECIPES if "lr_scheduler_kwargs" in options_of(name)])
def test_the_learning_rate_drops_after_the_epoch_that_the_comment_names(name, tmp_path):
    config = parsed(name, tmp_path)[-1]
    kwargs = config.lr_scheduler_kwargs
    steps = math.ceil(TRAIN_IMAGES / (config.per_device_train_batch_size * GPUS))  # of an epoch
    drop = int(re.search(r"divided by 10 after (\d+) of them", comment_of(name))[1]) * steps
    assert kwargs["num_stable_steps"] == drop
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    last = int(config.num_train_epochs) * steps
    schedule = get_scheduler(config.lr_scheduler_type, optimizer, 0, last, kwargs)
    assert [schedule.lr_lambdas[0](step) for step in (0, drop - 1, drop, last)] == [1.0, 1.0, 0.1, 0.1]


@pytest.fixture(scope="module")
def coco(scenes, tmp_path_factory) -> Path:
    """The drawn scenes in the folder that COCO's own archives make, captions and keypoints beside the boxes."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        file = scenes / "annotations" / f"instances_{split}.json"
        (folder / "annotations" / f"instances_{split}2017.json").write_bytes(file.read_bytes())
        for other in ("captions", "person_keypoints"):
            (folder / "annotations" / f"{other}_{split}2017.json").write_text('{"info": {}, "images": []}')
        (folder / f"{split}2017").symlink_to(scenes / "images" / split)
    return folder


def saved_detector(family: str, folder: Path, **settings) -> Path:
    """A tiny model of a family with the scenes' classes, as ``from_pretrained`` reads it."""
    names = class_names("easy")
    torch.manual_seed(0)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    model = MODELS[family](num_labels=len(names), **labels, **settings)
    return save_model(adapter_class(family)(model), folder, size=ImageSize(square=64))


def saved_backbone(name: str, folder: Path) -> Path:
    """An image classifier with a narrow ResNet, in place of the one that saw ImageNet."""
    layer_type, depths, expansion = DEPTHS[name]
    first = int(64 * WIDTH)
    widths = [expansion * first * 2**stage for stage in range(4)]
    config = ResNetConfig(embedding_size=first, hidden_sizes=widths, depths=depths, layer_type=layer_type)
    ResNetForImageClassification(config).save_pretrained(folder)
    return folder


def exchanged(name: str, folder: Path) -> dict:
    """What a recipe names that cannot be had without a network, and sizes, as flags with tiny ones."""
    options, family = options_of(name), family_of(name)
    flags = {"teacher": saved_detector(family, folder / "teacher"), "image_size": 64, "max_steps": 1}
    flags |= {"per_device_train_batch_size": 2, "dataloader_num_workers": 0, "logging_steps": 1}
    flags |= {key: 96 for key in ("max_image_size", "teacher_image_size") if key in options}
    if "student" in options:
        flags["student"] = saved_detector(family, folder / "student", decoder_layers=2, num_queries=8)
    else:
        weights = saved_backbone(options["student_backbone"], folder / "backbone")
        flags |= {"student_backbone_weights": weights, "student_backbone_width": WIDTH}
    return flags


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_trains_on_cocos_own_folder(name, coco, tmp_path):
    """One step as written, but for ``exchanged`` and the preflight, which would refuse a teacher that knows nothing."""
    flags = [f"--{key}={value}" for key, value in exchanged(name, tmp_path).items()]
    run = tmp_path / "run"
    command = ["distill", "--config", str(RECIPES[name]), "--data", str(coco), "--output_dir", str(run), *flags]
    assert main([*command, "--use_cpu", "--disable_tqdm=true", "--no-preflight"]) == 0
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 1
    entry = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert any(key.startswith("lapd_") for key in entry)
    assert "agfd" in entry
