"""A model's folder may come from anybody: nothing in it runs, and its names do no harm."""

import json
import os
import pickle

import pytest
import torch

from builders_runs import save
from builders_trainer import adapter_of
from qskd.data.transforms import ImageSize
from qskd.errors import CheckpointError, ConfigError, QskdError
from qskd.models.loading import as_config, load_model, read_config
from qskd.models.processors import save_model


class Evil:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def folder(tmp_path):
    return save("detr_student", tmp_path / "model")


@pytest.mark.parametrize("writes", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_pickle_among_the_weights_is_not_run(folder, tmp_path, writes):
    canary = tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    writes({"weight": Evil(canary)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(folder)
    assert not canary.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes()) if writes is not torch.save else torch.load(
        folder / "pytorch_model.bin", weights_only=False
    )
    assert canary.exists(), "the pickle does what it should not"


@pytest.mark.parametrize("model_type", ["detr", "my_detector"])
def test_code_in_a_models_folder_is_not_run_unless_that_was_asked_for(folder, tmp_path, model_type):
    canary = tmp_path / "canary"
    code = f"import os\nos.makedirs({str(canary)!r}, exist_ok=True)\n"
    code += "from transformers import DetrConfig, DetrForObjectDetection\n"
    code += (
        "class MyConfig(DetrConfig):\n    pass\nclass MyModel(DetrForObjectDetection):\n    config_class = MyConfig\n"
    )
    (folder / "modeling_mine.py").write_text(code)
    content = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "modeling_mine.MyConfig", "AutoModelForObjectDetection": "modeling_mine.MyModel"}
    (folder / "config.json").write_text(json.dumps(content | {"model_type": model_type, "auto_map": names}))
    try:
        loaded = load_model(folder)
    except QskdError as error:
        assert model_type != "detr"
        assert "trust_remote_code" in str(error)  # noqa: PT017 - one of the families is loaded without its code
    else:
        assert type(loaded.model).__module__.startswith("transformers.")
    assert not canary.exists()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_without_end_is_refused(folder, name):
    (folder / name).write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(QskdError, match=name if name != "config.json" else "cannot be loaded"):
        load_model(folder)
    if name == "config.json":
        with pytest.raises(CheckpointError):
            read_config(str(folder))
        with pytest.raises(ConfigError, match="is no JSON"):
            as_config(folder)


def test_class_names_are_plain_text_in_the_model_card(tmp_path):
    names = ("<script>alert(1)</script>", "a`b", "x\n---\n# title", "[l](javascript:x)", "a|b", "\u202egnp", "größe")
    labels = {"id2label": dict(enumerate(names)), "label2id": {}, "num_labels": len(names)}
    save_model(adapter_of("detr", **labels), tmp_path, size=ImageSize(square=64))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("Classes: ")]
    assert text.rstrip().endswith(line)
    assert "<script" not in text
    assert "\\[l\\](javascript:x)" in line
    assert "a\\`b" in line
    assert "a\\|b" in line
    assert "\u202e" not in text
    assert "größe" in line
