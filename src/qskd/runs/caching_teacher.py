"""Running a teacher once over the augmented training data, and keeping its answers; `qskd cache`."""

import os
from pathlib import Path

import torch

from qskd.errors import ConfigError
from qskd.labels import LabelMap
from qskd.models.loading import as_teacher
from qskd.runs import building
from qskd.runs.cache_key import cached_sizes, data_key, selection_key, sizes_as_options, teacher_key
from qskd.runs.caching_pass import Cached, Pass
from qskd.runs.caching_progress import continuable
from qskd.runs.given_teacher import LoadedTeacher
from qskd.runs.options import CacheOptions, DataOptions, MethodOptions
from qskd.runs.processes import rank, world
from qskd.runs.recording import Recorder
from qskd.runs.training import plain_size


def cache_teacher(options: CacheOptions, data: DataOptions, method: MethodOptions) -> Cached:
    """Keep a teacher's answers to the training images, in a folder for `distill`.

    Started again, it goes on where it was: shards that are whole are kept, others are made anew. Several processes
    (torchrun) share the shards.

    Raises:
        ConfigError: options that cannot be, or a disk with too little room.
        CheckpointError: the folder holds a cache of something else.
        QskdError: bad input, found before the first image.
    """
    _check(options)
    assert options.teacher is not None
    assert options.output_dir is not None
    settings = method.settings()
    needs = settings.needs
    splits = building.open_splits(data)
    plain = as_teacher(
        building.open_model(
            options.teacher, None, box_frame=options.teacher_box_frame, trust_remote_code=options.trust_remote_code
        )
    )
    size, teacher_size = cached_sizes(options, data, plain)
    train, _ = building.datasets(splits, data, size, options.seed, teacher_size, workers=options.dataloader_num_workers)
    key = (
        teacher_key(plain)
        | data_key(splits, data)
        | {"image size": plain_size(size), "teacher image size": plain_size(teacher_size), "seed": options.seed}
        | selection_key(settings)
    )
    device = _place(options.use_cpu)
    teacher = LoadedTeacher(plain, LabelMap.between(plain.id2label, splits.class_names), teacher_size, device)
    side = teacher.side(settings, {}, size)
    recorder = Recorder(side, train, needs, getattr(torch, options.cache_dtype), options, device, rank(), world())
    job = Pass(Path(options.output_dir).expanduser(), recorder, splits, key, teacher, method.preflight)
    with continuable(job.folder):
        return job.run(sizes_as_options(size, teacher_size))


def _check(options: CacheOptions) -> None:
    if options.teacher is None:
        raise building.missing_option("--teacher", "a hub id or the folder of a trained detector")
    if options.output_dir is None:
        raise building.missing_option("--output_dir", "a folder for the cache")
    for name in ("epochs", "batch_size"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}; give at least 1.")
    if Path(options.output_dir).is_file():
        raise ConfigError(f"--output_dir {options.output_dir} is a file; give a folder.")


def _place(use_cpu: bool) -> torch.device:
    """The device of this process."""
    if use_cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)  # else what names no device opens the first one in every process
    return device
