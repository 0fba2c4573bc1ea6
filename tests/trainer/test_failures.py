"""What ends a training from outside: a full disk, no memory, images that go. The last checkpoint stays usable."""

import errno
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from builders_runs import edited, entries_of
from builders_trainer import adapter_of, trainer_of
from qskd.errors import ConfigError, DataError, OutOfMemory, SavingError
from qskd.files import whole_file, whole_folder, write_whole
from qskd.runs.folder import RunFolder
from qskd.trainer import checkpoints, failures
from qskd.trainer.saving import recover

SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 5}


def assert_usable(folder, scenes, step=2):
    """The checkpoint before the failure is the last one and goes on to the end; nothing is left over."""
    kept = checkpoints.latest(folder / "checkpoints")
    assert kept.name == f"checkpoint-{step}"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [kept.name]
    resumed = trainer_of(folder, scenes, adapter_of("detr"), **SAVED)
    resumed.train(resume_from_checkpoint=str(kept))
    assert [entry["step"] for entry in entries_of(folder)] == [1, 2, 3, 4]


class At(TrainerCallback):
    """Does something when a step begins."""

    def __init__(self, step, do):
        self.step, self.do = step, do

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            self.do()


def unappendable(opens, number):
    """Opening to read goes on as ever."""

    def opened(path, mode="r", *arguments, **more):
        if mode == "a":
            raise OSError(number, os.strerror(number), str(path))
        return opens(path, mode, *arguments, **more)

    return opened


def half(write, number):
    """Writes a file, cuts it off and fails."""

    def written(state, path, *arguments, **more):
        write(state, path, *arguments, **more)
        os.truncate(path, Path(path).stat().st_size // 2)
        raise OSError(number, os.strerror(number), str(path))

    return written


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "No space left"), (errno.EROFS, "Read-only"), (errno.EACCES, "denied"), (errno.EDQUOT, "quota")],
)
def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_the_one_before_it(
    tmp_path, scenes, monkeypatch, number, said
):
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), **SAVED)
    trainer.add_callback(At(4, lambda: monkeypatch.setattr(torch, "save", half(torch.save, number))))
    with pytest.raises(SavingError) as caught:
        trainer.train()
    monkeypatch.undo()
    text = str(caught.value)
    assert str(tmp_path) in text
    assert said.lower() in text.lower()
    assert "A checkpoint needs about" in text
    assert "are free there" in text
    assert f"The last complete checkpoint is {tmp_path}/checkpoints/checkpoint-2" in text
    assert "--resume_from_checkpoint last" in text
    assert_usable(tmp_path, scenes)


def test_the_disks_own_writers_are_understood(tmp_path, scenes):
    """A limit on the size of files is a full disk to safetensors (Rust), PyTorch (C++) and Python alike."""
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), **SAVED)
    size = trainer._checkpoint_size()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    trainer.add_callback(At(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 8, hard))))
    try:
        with pytest.raises(SavingError, match="File too large"):
            trainer.train()
        with pytest.raises(RuntimeError) as caught:
            torch.save(torch.zeros(size), tmp_path / "big.pt")
        assert failures.why_not_written(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert_usable(tmp_path, scenes)


def test_a_log_that_cannot_be_written_ends_the_run_as_well(tmp_path, scenes, monkeypatch):
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), **SAVED)
    trainer.add_callback(At(3, lambda: monkeypatch.setattr(Path, "open", unappendable(Path.open, errno.ENOSPC))))
    with pytest.raises(SavingError, match=r"metrics.jsonl: No space left.*checkpoint-2"):
        trainer.train()
    monkeypatch.undo()
    assert_usable(tmp_path, scenes)


def test_the_kept_model_is_the_old_one_until_the_new_one_is_whole(tmp_path, scenes):
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), max_steps=1)
    trainer.keep("best")
    before = {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()}

    def fails(adapter, path):
        path.mkdir()
        (path / "config.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    trainer.save_student = fails
    with pytest.raises(SavingError, match="No space left"):
        trainer.keep("best")
    assert {path.name: path.read_bytes() for path in (tmp_path / "best").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("change", "said"), [("gone", "has disappeared"), ("torn", "cannot be decoded")])
def test_an_image_that_goes_during_training_is_named(tmp_path, scenes, workers, change, said):
    import shutil

    data = edited(scenes, tmp_path / "data", lambda content: None)
    (data / "images").unlink()
    shutil.copytree(scenes / "images", data / "images")
    trainer = trainer_of(tmp_path / "run", data, adapter_of("detr"), **SAVED, dataloader_num_workers=workers)

    def spoil():
        for record in trainer.train_dataset.index.images:
            if change == "gone":
                record.path.unlink()
            else:
                record.path.write_bytes(record.path.read_bytes()[:200])

    # With a process that loads ahead, the first epoch of 4 steps may be there already.
    trainer.add_callback(At(3 if workers == 0 else 1, spoil))
    options = {"max_steps": 12}
    trainer.args.max_steps = options["max_steps"]
    with pytest.raises(DataError, match=said) as caught:
        trainer.train()
    text = str(caught.value)
    assert "Traceback" not in text
    assert any(record.path.name in text for record in trainer.train_dataset.index.images)
    last = checkpoints.latest(tmp_path / "run" / "checkpoints")
    assert (f"The last complete checkpoint is {last}" if last else "No checkpoint had been written yet") in text
    assert last is not None or workers


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError()])
def test_too_little_memory_says_what_to_give_instead(tmp_path, scenes, error):
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), **SAVED, gradient_accumulation_steps=1)

    def fails():
        raise error

    trainer.add_callback(At(3, fails))
    with pytest.raises(OutOfMemory) as caught:
        trainer.train()
    text = str(caught.value)
    assert "Step 3 does not fit" in text
    assert "4 images of 64 x 64 pixels at a time in float32" in text
    assert "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 takes the same step" in text
    assert "an --image_size below 64" in text
    assert "checkpointing" not in text.replace("checkpoints", "")
    assert "checkpoint-2" in text
    # As the message says: the run may go on with half the batch.
    halved = SAVED | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    resumed = trainer_of(tmp_path, scenes, adapter_of("detr"), **halved)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoints" / "checkpoint-2"))
    assert resumed.state.global_step == 4


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (8, "8 images at a time. --per_device_eval_batch_size 4 needs less"),
        (1, "one image at a time. A smaller --image"),
    ],
)
def test_too_little_memory_in_an_evaluation_is_not_blamed_on_training(tmp_path, scenes, monkeypatch, images, said):
    options = SAVED | {"eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": images}
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), **options)

    def fails(*arguments, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("qskd.trainer.trainer.evaluate_detector", fails)
    with pytest.raises(OutOfMemory) as caught:
        trainer.train()
    text = str(caught.value)
    assert f"The evaluation after step 3 does not fit into the machine's memory: {said}" in text
    assert "train_batch_size" not in text
    assert "checkpoint-2" in text


def test_too_little_memory_after_an_evaluation_is_that_of_a_step(tmp_path, scenes):
    options = SAVED | {"eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), **options)

    def fails():
        raise MemoryError

    trainer.add_callback(At(2, fails))
    with pytest.raises(OutOfMemory, match="Step 2 does not fit"):
        trainer.train()


@pytest.mark.parametrize("strategy", ["no", "epoch"], ids=["nothing-kept", "best-kept"])
def test_after_a_full_disk_at_the_first_checkpoint_the_message_says_what_works(tmp_path, scenes, monkeypatch, strategy):
    run = tmp_path / "run"
    folder = RunFolder(run)
    folder.open(None)
    options = {"max_steps": 1, "save_strategy": "epoch", "eval_strategy": strategy}
    trainer = trainer_of(run, scenes, adapter_of("detr"), **options)
    monkeypatch.setattr(torch, "save", half(torch.save, errno.ENOSPC))
    with pytest.raises(SavingError) as caught, folder.claimed("train", {}):
        trainer.train()
    text = str(caught.value)
    assert "nothing is lost" not in text
    if strategy == "no":
        assert text.endswith("No checkpoint had been written yet: start anew.")
        assert folder.open(None) is None
    else:
        assert text.endswith(f"start anew, with another --output_dir or when {run} is removed.")
        with pytest.raises(ConfigError, match=r"holds another run .config.yaml, best."):
            folder.open(None)


@pytest.mark.parametrize(
    ("images", "steps", "is_half", "can_halve", "said", "unsaid"),
    [
        (8, 3, False, True, "batch_size 4 --gradient_accumulation_steps 6 takes the same step", "almost"),
        (5, 1, False, True, "batch_size 2 --gradient_accumulation_steps 3 takes almost the same step", "below 0"),
        (1, 1, False, True, "--bf16 or an --image_size below 800", "gradient_accumulation"),
        (2, 1, True, True, "an --image_size below 800", "--bf16"),
        (2, 1, False, False, "an --image_size below 800", "--bf16"),
    ],
)
def test_the_advice_is_in_the_numbers_of_the_run(images, steps, is_half, can_halve, said, unsaid):
    advice = failures.Load(images, steps, (600, 800), is_half, can_halve).advice()
    assert said in advice
    assert unsaid not in advice


def test_errors_of_other_kinds_stay_what_they_are(tmp_path, scenes):
    trainer = trainer_of(tmp_path, scenes, adapter_of("detr"), **SAVED)

    def fails():
        raise RuntimeError("something else")

    trainer.add_callback(At(2, fails))
    with pytest.raises(RuntimeError, match=r"^something else$"):
        trainer.train()


# ---- resuming elsewhere, and what a kill leaves ----------------------------------------------------------


def test_in_another_folder_the_best_ap_begins_anew(tmp_path, scenes):
    """Else nothing would be kept until the AP of a model that is not there is beaten."""
    evaluated = {"eval_strategy": "steps", "eval_steps": 1}
    trainer_of(tmp_path / "one", scenes, adapter_of("detr"), **(SAVED | evaluated | {"max_steps": 2})).train()
    given = str(tmp_path / "one" / "checkpoints" / "checkpoint-2")
    for folder, best in (("one", 1), ("two", 3)):
        resumed = trainer_of(tmp_path / folder, scenes, adapter_of("detr"), **(SAVED | evaluated), learning_rate=1e-3)
        resumed.train(resume_from_checkpoint=given)
        assert (tmp_path / folder / "best" / "model.safetensors").is_file()
        assert resumed.state.best_global_step == best


@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_a_kill_while_a_model_is_replaced_leaves_one_whole_model(tmp_path, moment):
    old, fresh, best = (tmp_path / name for name in (".best.old", ".best.tmp", "best"))
    there = {"before": (best, fresh), "between": (old, fresh), "after": (old, best)}[moment]
    for path, content in zip(there, ("one", "two"), strict=True):
        path.mkdir()
        (path / "model.safetensors").write_text(content)
    (tmp_path / ".summary.json.tmp").write_text('{"na')
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (best / "model.safetensors").read_text() == ("two" if moment == "after" else "one")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "a.json", "old")

    def file_is_cut():
        with whole_file(tmp_path / "a.json") as fresh:
            fresh.write_text("ne")
            raise ValueError("stop")

    def folder_is_cut():
        with whole_folder(tmp_path / "b") as fresh:
            fresh.mkdir()
            raise ValueError("stop")

    for cut in (file_is_cut, folder_is_cut):
        with pytest.raises(ValueError, match="stop"):
            cut()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "unable to mmap 1024 bytes from file </torch_1_2>: Cannot allocate memory (12)",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_too_little_memory_is_told_by_many_words(said):
    assert failures.is_no_memory(RuntimeError(said))
    assert not failures.is_no_memory(RuntimeError("CUDNN_STATUS_BAD_PARAM"))
