import json

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from builders import MODELS, random_batch
from qskd.boxes import cxcywh_to_xyxy
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError
from qskd.models.adapter import PixelNorm
from qskd.models.loading import new_model
from qskd.models.processors import IMAGENET, given_pixel_norm, image_size_of, pixel_norm_of, save_model

SIZE = 96


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def saved(family, folder, size):
    torch.manual_seed(0)
    adapter = new_model(MODELS[family]().config, ["cat", "dog", "hen"])
    adapter.model.eval()
    for parameter in adapter.model.parameters():  # box heads start at 0, where all boxes are alike
        parameter.data += 0.05 * torch.randn_like(parameter)
    return adapter, save_model(adapter, folder / "new" / "model", size=size)


@pytest.mark.parametrize("family", MODELS)
def test_plain_transformers_gives_the_adapters_answer(family, tmp_path):
    adapter, folder = saved(family, tmp_path, ImageSize(square=SIZE))
    batch = random_batch(((SIZE, SIZE),), (0,))
    image = (batch.pixels[0] * 255).round().to(torch.uint8)
    batch.pixels[0] = image / 255

    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(images=image, return_tensors="pt"))
        view = adapter.read(batch).view
    found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(200, 100)])[0]

    torch.testing.assert_close(outputs.pred_boxes, view.boxes[-1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.logits[..., :3], view.logits[-1], rtol=1e-4, atol=1e-4)
    best = int(found["scores"].argmax())
    scores = view.scores()[-1, 0]
    query = int(scores.max(-1).values.argmax())
    expected = cxcywh_to_xyxy(view.boxes[-1, 0, query]) * torch.tensor([100.0, 200, 100, 200])
    torch.testing.assert_close(found["boxes"][best], expected, rtol=1e-3, atol=1e-2)
    assert found["labels"][best] == scores[query].argmax()
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "hen"}


@pytest.mark.parametrize("size", [ImageSize(square=96), ImageSize(shortest_edge=48, longest_edge=80)])
@pytest.mark.parametrize("family", ["detr", "deformable_detr", "dab-detr"])
def test_the_processor_resizes_as_in_training(family, size, tmp_path):
    _, folder = saved(family, tmp_path, size)
    image = torch.randint(256, (3, 60, 90), dtype=torch.uint8)

    pixels = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")["pixel_values"]

    assert tuple(pixels.shape[-2:]) == size.of(60, 90)
    assert image_size_of(folder) == size


def test_the_processor_normalises_as_in_training(tmp_path):
    adapter = new_model(MODELS["rt_detr"]().config, ["cat"])
    adapter.pixel_norm = PixelNorm((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    folder = save_model(adapter, tmp_path, size=ImageSize(square=32))
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)

    pixels = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")["pixel_values"]

    expected = torch.tensor([0.9 / 0.5, 0.8 / 0.6, 0.7 / 0.7])
    torch.testing.assert_close(pixels[0, :, 5, 5], expected)


@pytest.mark.parametrize(
    ("settings", "family", "expected"),
    [
        (None, "rt_detr", PixelNorm()),
        (None, "detr", IMAGENET),
        ({"do_normalize": False, "image_mean": [0.5] * 3}, "detr", PixelNorm()),
        (
            {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": 0.2},
            "detr",
            PixelNorm((0.5,) * 3, (0.2,) * 3),
        ),
        ({"do_normalize": True}, "rt_detr", IMAGENET),
        ({}, "rt_detr", PixelNorm()),
        ({}, "conditional_detr", IMAGENET),
        (None, "deimv2", PixelNorm()),
        (None, "deimv2-dinov3", IMAGENET),
        (None, "rf_detr", IMAGENET),
    ],
)
def test_pixels_are_normalised_as_the_checkpoints_processor_does(settings, family, expected, tmp_path):
    if settings is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))

    assert pixel_norm_of(tmp_path, MODELS[family]().config) == expected


def test_a_processor_that_does_not_rescale_is_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"do_rescale": false}')

    with pytest.raises(CheckpointError, match="do_rescale"):
        pixel_norm_of(tmp_path, MODELS["detr"]().config)


def test_weights_are_safetensors_and_a_card_says_what_they_are(tmp_path):
    adapter = new_model(MODELS["rt_detr"]().config, ["cat", "dog"])

    save_model(adapter, tmp_path, size=ImageSize(square=SIZE), extra_card="## Scores\nAP 0.5")

    assert {path.name for path in tmp_path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "README.md",
    }
    card = (tmp_path / "README.md").read_text()
    assert "96 x 96 pixels" in card
    assert "Classes: cat, dog." in card
    assert card.endswith("## Scores\nAP 0.5\n")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"longest_edge": 800, "shortest_edge": None}, ImageSize(shortest_edge=800, longest_edge=800)),
        ({"longest_edge": 1000}, ImageSize(shortest_edge=1000, longest_edge=1000)),
        ({"height": 384, "width": 384}, ImageSize(square=384)),
        ({"height": 384, "width": 512}, None),
        (800, ImageSize(shortest_edge=800, longest_edge=1333)),
        ({"shortest_edge": 480}, ImageSize(shortest_edge=480, longest_edge=800)),
        ([640, 640], ImageSize(square=640)),
        (None, None),
    ],
)
def test_the_size_of_a_processor_file(tmp_path, size, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    assert image_size_of(tmp_path) == expected


def test_the_size_of_the_first_checkpoints(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 800, "max_size": 1200}))
    assert image_size_of(tmp_path) == ImageSize(shortest_edge=800, longest_edge=1200)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": "large"},
        {"size": {"height": "640", "width": "640"}},
        {"size": {"height": 0, "width": 0}},
        {"size": [640, 640.5]},
    ],
)
def test_a_size_that_is_none_is_refused_with_its_file(tmp_path, settings):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json has the size"):
        image_size_of(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_normalize": True, "image_mean": [0.5, 0.5]}, "image_mean"),
        ({"do_normalize": True, "image_std": 0}, "image_std"),
        ({"do_normalize": True, "image_std": [0.2, "x", 0.2]}, "image_std"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
    ],
)
def test_a_normalisation_that_is_none_is_refused_with_its_file(tmp_path, settings, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json has {message}"):
        pixel_norm_of(tmp_path, MODELS["detr"]().config)


def test_a_folder_without_processor_has_no_size(tmp_path):
    assert image_size_of(tmp_path) is None


def test_the_normalisation_of_a_backbone_is_the_one_it_brings(tmp_path):
    assert given_pixel_norm(tmp_path) is None
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"image_mean": 0.5, "image_std": [0.1, 0.2, 0.3]}')
    assert given_pixel_norm(tmp_path) == PixelNorm((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    path.write_text('{"do_normalize": false}')
    assert given_pixel_norm(tmp_path) == PixelNorm()
    path.write_text('{"rescale_factor": 0.0078}')
    with pytest.raises(CheckpointError, match="rescale_factor"):
        given_pixel_norm(tmp_path)
