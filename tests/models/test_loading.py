import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from builders import FAMILY_OF, MODELS, NUM_CLASSES, batch_for, random_batch
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, ConfigError, LabelMapError, UnsupportedFamily
from qskd.models.families import adapter_class
from qskd.models.fingerprints import weights_fingerprint
from qskd.models.initialising import CLASS_HEAD, SOFTMAX_FAMILIES
from qskd.models.loading import as_teacher, load_model, new_model, with_class_names
from qskd.models.processors import save_model

SAME_WEIGHTS = ("deformable_detr-refine", "rt_detr_v2-discrete")  # as another one
ONE_EACH = [family for family in MODELS if family not in SAME_WEIGHTS]
PICKS_QUERIES = {"rt_detr", "rt_detr_v2", "d_fine", "deimv2", "lw_detr", "rf_detr"}  # by class score
NAMES = ["cat", "dog", "hen", "emu", "yak"]
assert len(NAMES) == NUM_CLASSES


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def named(family):
    model = MODELS[family]()
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: index for index, name in enumerate(NAMES)}
    return model


def adapter_of(family):
    model = named(family)
    return adapter_class(model.config.model_type)(model)


@pytest.fixture
def folder(tmp_path):
    named("rt_detr").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("family", ONE_EACH)
def test_a_saved_model_comes_back_as_it_was(family, tmp_path):
    adapter = adapter_of(family)
    save_model(adapter, tmp_path, size=ImageSize(square=64))

    loaded = load_model(tmp_path)

    assert type(loaded) is type(adapter)
    assert weights_fingerprint(loaded.model) == weights_fingerprint(adapter.model)
    assert loaded.id2label == dict(enumerate(NAMES))
    assert not loaded.model.training


def test_weights_are_float32_unless_asked_otherwise(tmp_path):
    named("rt_detr").to(torch.bfloat16).save_pretrained(tmp_path)

    assert next(load_model(tmp_path).model.parameters()).dtype == torch.float32
    assert next(load_model(tmp_path, dtype=torch.bfloat16).model.parameters()).dtype == torch.bfloat16


def test_weights_saved_by_torch_are_read_without_unpickling_objects(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert load_model(folder).family == "rt_detr"

    torch.save({"weights": weights, "anything": adapter_of}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        load_model(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist\. Give a folder"):
        load_model(tmp_path / "nowhere")


def test_a_file_is_no_folder(folder):
    with pytest.raises(CheckpointError, match="is a file"):
        load_model(folder / "config.json")


def test_a_folder_without_configuration_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(folder)


def test_a_folder_without_weights_says_which_files_were_looked_for(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors, .*pytorch_model\.bin"):
        load_model(folder)


def test_weights_that_would_stay_random_are_refused_by_name(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "enc_score_head" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})

    with pytest.raises(CheckpointError, match=r"lacks 2 weights.*model\.enc_score_head\.bias"):
        load_model(folder)


def test_weights_of_another_shape_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"decoder_ffn_dim": 24}))

    with pytest.raises(CheckpointError, match=r"9 weights of other shapes.*decoder\.layers\.0\.mlp\.fc1\.bias"):
        load_model(folder)


def test_a_hub_id_out_of_reach_is_explained():
    with pytest.raises(CheckpointError, match=r"(?s)'nobody/nothing'.*hf download"):
        load_model("nobody/nothing")


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("pp_doclayout_v3", "'pp_doclayout_v3': .*transformers cannot train it.* Supported: "),
        ("yolos", r"'yolos': its queries are tokens of the backbone.* Supported: .*d_fine.*rt_detr"),
        ("grounding-dino", r"'grounding-dino': it is told by a text"),
        ("bert", r"'bert'\. Supported"),
    ],
)
def test_an_unsupported_family_says_why_and_lists_those_that_are(family, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(UnsupportedFamily, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["object", "fields", "file", "folder"])
def test_a_new_model_is_built_from_any_form_of_configuration(kind, tmp_path):
    config = MODELS["rt_detr"]().config
    config.save_pretrained(tmp_path)
    forms = {
        "object": config,
        "fields": config.to_dict(),
        "file": tmp_path / "config.json",
        "folder": str(tmp_path),
    }

    adapter = new_model(forms[kind], ["cat", "dog"])

    assert adapter.id2label == {0: "cat", 1: "dog"}
    assert adapter.read(random_batch(num_classes=2)).view.num_classes == 2
    assert config.num_labels == NUM_CLASSES


@pytest.mark.parametrize("family", ONE_EACH)
def test_a_new_model_predicts_the_given_classes_before_and_after_saving(family, tmp_path):
    adapter = new_model(MODELS[family]().config, ["cat", "dog"])
    adapter.model.eval()
    save_model(adapter, tmp_path, size=ImageSize(square=64))

    batch = batch_for(family, (1,))
    before, after = adapter.read(batch).view, load_model(tmp_path).read(batch).view

    torch.testing.assert_close(after.logits, before.logits)
    assert before.num_classes == 2


@pytest.mark.parametrize(
    ("config", "names", "error", "message"),
    [
        ({"model_type": "rt_detr"}, [], ConfigError, "at least one class"),
        ({"d_model": 8}, ["a"], ConfigError, "no model_type"),
        ({"model_type": "bert"}, ["a"], UnsupportedFamily, "bert"),
        ({"model_type": "rt_detr", "d_model": "wide"}, ["a"], ConfigError, "d_model"),
        ("nowhere.json", ["a"], ConfigError, "nowhere.json is no file"),
    ],
    ids=["no classes", "no type", "no detector", "wrong type of field", "no file"],
)
def test_a_configuration_that_cannot_be_used_is_refused(config, names, error, message):
    with pytest.raises(error, match=message):
        new_model(config, names)


@pytest.mark.parametrize("family", ONE_EACH)
def test_predictions_of_kept_classes_survive_a_change_of_classes(family):
    adapter = adapter_of(family)
    batch = batch_for(family, (0,), num_classes=3)
    before = adapter.read(batch).view

    changed = with_class_names(adapter, ["Yak", "fox", "cat"])

    after = changed.read(batch).view
    if "two-stage" not in family and FAMILY_OF[family] not in PICKS_QUERIES:
        torch.testing.assert_close(after.logits[..., [0, 2]], before.logits[..., [4, 0]])
        torch.testing.assert_close(after.boxes, before.boxes)
    if before.no_object is not None:
        torch.testing.assert_close(after.no_object, before.no_object)
    assert after.num_classes == 3
    assert changed.id2label == {0: "Yak", 1: "fox", 2: "cat"}
    assert adapter.id2label == dict(enumerate(NAMES))


@pytest.mark.parametrize("family", ONE_EACH)
def test_every_class_layer_follows_the_names(family):
    adapter = adapter_of(family)

    changed = with_class_names(adapter, ["yak", "fox", "cat"])

    extra = 1 if family in SOFTMAX_FAMILIES else 0
    heads = {name: module for name, module in changed.model.named_modules() if CLASS_HEAD.search(name)}
    old = dict(adapter.model.named_modules())
    linear = {name: module for name, module in heads.items() if isinstance(module, torch.nn.Linear)}
    assert linear
    for name, module in linear.items():
        assert module.out_features == len(module.bias) == 3 + extra
        assert torch.equal(module.weight[0], old[name].weight[4])
        assert torch.equal(module.weight[2], old[name].weight[0])
        assert not torch.equal(module.weight[1], old[name].weight[1])


@pytest.mark.parametrize("family", ["rt_detr", "rt_detr_v2", "d_fine", "deimv2"])
def test_label_embeddings_follow_the_names(family):
    adapter = adapter_of(family)
    old = adapter.model.model.denoising_class_embed.weight

    new = with_class_names(adapter, ["yak", "fox", "cat"]).model.model.denoising_class_embed

    assert (new.num_embeddings, new.padding_idx) == (4, 3)
    assert torch.equal(new.weight[[0, 2, 3]], old[[4, 0, 5]])


@pytest.mark.parametrize("family", ["rt_detr", "deformable_detr-two-stage", "detr", "d_fine", "lw_detr"])
def test_a_model_with_other_classes_trains_and_is_saved(family, tmp_path):
    changed = with_class_names(adapter_of(family), [f"class {index}" for index in range(8)])
    changed.model.train()

    batch = random_batch(((64, 96),), (3,), num_classes=8)
    loss = changed.model(batch.pixels, labels=batch.targets.as_huggingface()).loss
    changed.model.eval().save_pretrained(tmp_path)

    assert loss.isfinite()
    assert weights_fingerprint(load_model(tmp_path).model) == weights_fingerprint(changed.model)


def test_shared_heads_stay_shared():
    adapter = adapter_of("deformable_detr")
    heads = adapter.model.class_embed
    assert heads[0].weight is heads[1].weight

    changed = with_class_names(adapter, ["cat"]).model.class_embed

    assert changed[0].weight is changed[2].weight


def test_the_same_names_keep_the_very_model():
    adapter = adapter_of("rt_detr")

    assert with_class_names(adapter, NAMES) is adapter


@pytest.mark.parametrize(("names", "error"), [([], ConfigError), (["cat", "CAT"], LabelMapError)])
def test_class_names_that_cannot_be_used_are_refused(names, error):
    with pytest.raises(error):
        with_class_names(adapter_of("detr"), names)


def test_a_teacher_is_frozen():
    adapter = adapter_of("rt_detr")
    adapter.model.train()

    assert as_teacher(adapter) is adapter
    assert not adapter.model.training
    assert not any(parameter.requires_grad for parameter in adapter.model.parameters())


def test_weights_of_a_training_that_diverged_are_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(CheckpointError, match="holds NaN or infinity; its training diverged"):
        load_model(folder)
