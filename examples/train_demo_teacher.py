"""Train the teacher that `qskd demo` brings along, as it was trained.

    python examples/train_demo_teacher.py --output_dir runs/demo_teacher

Draws 16,000 scenes of another seed than the demo's, trains ``configs/demo_teacher.json`` from scratch on them and
writes ``bundle/``: the best weights in half precision, with the AP that they have on the demo's validation scenes.
Then copy that folder's files to ``src/qskd/assets/demo_teacher``.
"""

import argparse
from pathlib import Path

import torch

import qskd
from qskd.data.synthetic import draw_dataset
from qskd.data.transforms import ImageSize
from qskd.models.processors import save_model
from qskd.runs.demo import IMAGE_SIZE, VAL_IMAGES, draw_scenes

CONFIG = Path(__file__).parent / "configs" / "demo_teacher.json"


def main() -> None:
    """Draw, train, bundle, measure."""
    options = _options()
    folder: Path = options.output_dir
    scenes = folder / "scenes"
    if not (scenes / "annotations" / "instances_val.json").is_file():
        draw_dataset(scenes, train=16_000, val=VAL_IMAGES, size=IMAGE_SIZE, seed=1)
    run = qskd.train(
        model=str(CONFIG),
        data=str(scenes),
        output_dir=str(folder / "run"),
        image_size=IMAGE_SIZE,
        max_steps=options.steps,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
        learning_rate=1e-3,
        warmup_steps=200,
        crop=0.0,
        photometric=0.0,
        ema_decay=0.999,
        eval_strategy="steps",
        eval_steps=500,
        save_strategy="steps",
        save_steps=500,
        logging_steps=100,
        resume_from_checkpoint="last" if options.resume else None,
    )
    adapter = qskd.load_model(run.model)
    adapter.model.to(torch.float16)
    bundle, size = folder / "bundle", ImageSize(square=IMAGE_SIZE)
    save_model(adapter, bundle, size=size)
    metrics = qskd.evaluate(model=str(bundle), data=str(draw_scenes(folder / "demo_scenes")))
    score = f"AP {100 * metrics['AP']:.1f} on the demo's validation scenes"
    card = f"{score}, after {options.steps} steps of `examples/train_demo_teacher.py`; weights in half precision."
    save_model(adapter, bundle, size=size, extra_card=card)
    print(f"{bundle}: {score}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo_teacher"))
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps of 16 images")
    parser.add_argument("--resume", action="store_true", help="continue after an interruption")
    return parser.parse_args()


if __name__ == "__main__":
    main()
