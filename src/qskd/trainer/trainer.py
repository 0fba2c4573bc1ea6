"""DistillationTrainer: ``transformers.Trainer`` for a detector, with or without a teacher."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast, gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from qskd.data.batch import Batch, collate
from qskd.data.dataset import DetectionDataset
from qskd.distiller import Distiller, StepTotals
from qskd.errors import NonFiniteLoss
from qskd.evaluation.coco_map import CocoEvaluator
from qskd.evaluation.streaming import evaluate_detector
from qskd.files import whole_folder
from qskd.models.adapter import DetrAdapter
from qskd.teacher import Teacher, Teaching, Unlabeled
from qskd.trainer import checkpoints, failures
from qskd.trainer.callbacks import AverageCallback, Console, DataEpoch, EarlyStopping, MetricsFile
from qskd.trainer.config import DistillationConfig
from qskd.trainer.ema import ModelAverage
from qskd.trainer.interruptions import shield, until
from qskd.trainer.refusing import check_data
from qskd.trainer.saving import BestBelongs, SafeTrainer
from qskd.trainer.unlabeled import UnlabeledImages, UnlabeledSteps


@dataclass(frozen=True, slots=True)
class StepInput:
    """One micro-batch with all that is known before the first gradient of its optimiser step."""

    batch: Batch
    teaching: Teaching | None
    totals: StepTotals
    unlabeled: Unlabeled | None = None


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay is for a parameter: matrices and kernels, but biases of whatever shape.

    The base class goes by names alone, and misses norms that are called "0.1", layer scales and the like.
    """
    return parameter.ndim > 1 and "bias" not in name.rpartition(".")[2]


def decays_by_name(model: nn.Module) -> bool:
    """Whether the names that the base class goes by tell the same of this model."""
    named = set(SafeTrainer.get_decay_parameter_names(None, model))
    trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
    return all(decays(name, one) == (name in named) for name, one in trained)


class DistillationTrainer(SafeTrainer):
    """Trains a detector plainly, or as the student of a teacher.

    Args:
        distiller: the student with its terms.
        args: settings; ``args.output_dir`` is the run folder.
        train_dataset: images to learn from.
        eval_dataset: images on which AP is measured; None trains without evaluation.
        teacher: the frozen teacher's side; None trains plainly.
        identity: what must not change when the run is resumed (teacher's fingerprint, classes, method).
        save_student: writes an adapter's model as a plain ``from_pretrained`` folder.
        unlabeled: images without annotations to learn from too; only with a teacher.
        pictures: draws what a model finds, as (name, [h, w, 3] uint8); shown in TensorBoard at each evaluation.
    """

    optimizer: Any
    control: Any

    def __init__(
        self,
        distiller: Distiller,
        args: DistillationConfig,
        train_dataset: DetectionDataset | None,
        eval_dataset: DetectionDataset | None = None,
        *,
        teacher: Teacher | None = None,
        identity: dict[str, Any] | None = None,
        save_student: Callable[[DetrAdapter, Path], None] | None = None,
        unlabeled: UnlabeledImages | None = None,
        pictures: Callable[[DetrAdapter], Sequence[tuple[str, NDArray[np.uint8]]]] | None = None,
    ) -> None:
        train_images = None if train_dataset is None else len(train_dataset)
        check_data(args, train_images, None if eval_dataset is None else eval_dataset.index)
        if eval_dataset is None:
            args.eval_strategy = type(args.eval_strategy)("no")
        super().__init__(
            model=distiller,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=collate,
        )
        # The distiller divides by what the whole step holds, over micro-batches and processes; with a number of
        # items from `get_batch_samples`, this keeps the base class from dividing once more.
        self.model_accepts_loss_kwargs = True
        self.distiller = distiller
        self.teacher = teacher
        if teacher is not None:
            teacher.to(self.args.device)
        self.identity = identity or {}
        self.save_student = save_student
        self.unlabeled = UnlabeledSteps(unlabeled, teacher, self.args) if teacher is not None and unlabeled else None
        self.pictures = pictures
        self.run_folder = Path(args.output_dir)
        self.average = ModelAverage(distiller.student, args.ema_decay) if args.ema_decay > 0 else None
        self._part_sums: dict[str, Tensor] = {}
        self._steps_in_sums = 0
        self._unchecked: list[tuple[StepInput, dict[str, Tensor]]] = []  # losses of this step so far
        self._install_callbacks()

    def _install_callbacks(self) -> None:
        for default in (ProgressCallback, PrinterCallback):
            self.remove_callback(default)
        self.add_callback(MetricsFile(self.run_folder / "metrics.jsonl", lambda: self.beginning))
        self.add_callback(Console())
        if isinstance(self.train_dataset, DetectionDataset):
            self.add_callback(DataEpoch(self.train_dataset))
        if self.average is not None:
            self.add_callback(AverageCallback(self.average, self.distiller.student))
        if self.args.early_stopping_patience > 0:
            self.add_callback(EarlyStopping(self.args.early_stopping_patience))
        if self.save_student is not None:
            self.add_callback(BestBelongs(self.run_folder / "best"))
        self.add_callback(self.ending())

    # ---- a step ------------------------------------------------------------------------------------------

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[StepInput], int]:
        """Fetch one optimiser step's micro-batches, let the teacher see all of them, and sum the normalisers."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if batches:
            self.batch_shape = tuple(batches[0].pixels.shape)
        batches = [batch.to(device, non_blocking=True) for batch in batches]
        with self.accelerator.autocast():
            teacher = self.teacher if self.distiller.terms else None  # it may be there for unlabelled images alone
            teachings = [teacher.teach(batch) if teacher is not None else None for batch in batches]
            unlabeled: Sequence[Unlabeled | None] = [None] * len(batches)
            if self.unlabeled is not None:
                unlabeled = self.unlabeled.label(self.state.global_step, device, len(batches))
        learnt = [*batches, *(one.detected for one in unlabeled if one is not None and one.detected is not None)]
        taught = [*teachings, *(one.teaching for one in unlabeled if one is not None)]
        totals = self.distiller.totals(learnt, taught, self.accelerator, is_last=self.signals.received is not None)
        self.step_is_last = totals.is_last
        inputs = [
            StepInput(batch, teaching, totals, more)
            for batch, teaching, more in zip(batches, teachings, unlabeled, strict=True)
        ]
        self._steps_in_sums += 1
        return inputs, 1

    def _prepare_inputs(self, inputs: StepInput) -> StepInput:
        """Nothing to do: ``get_batch_samples`` has moved everything already."""
        return inputs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: StepInput,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """One forward through the wrapped distiller."""
        parts = model(inputs.batch, inputs.totals, inputs.teaching, warmup=self._fading(), unlabeled=inputs.unlabeled)
        loss = parts["loss"]
        self._unchecked.append((inputs, {name: part.detach() for name, part in parts.items()}))
        for name, part in parts.items():
            if name != "loss":
                self._part_sums[name] = self._part_sums.get(name, 0.0) + part.detach()
        return (loss, parts) if return_outputs else loss

    def _fading(self) -> float:
        """The factor on the distillation terms in this step."""
        step, steps, end = self.state.global_step, self.args.distillation_warmup_steps, self.state.max_steps
        if step < steps:
            return (step + 1) / steps
        done = (step - steps) / max(end - steps, 1)
        match self.args.distillation_schedule:
            case "linear":
                return 1.0 - done
            case "cosine":
                return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As usual, clipped or not, and stop on losses and gradients that are not finite, before the optimiser."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self._check_step(None if self.accelerator.scaler is not None else norm)  # a loss scaler handles its own
        return norm

    def _check_step(self, norm: Tensor | float | None) -> None:
        """Stop at the first loss of this step, or at a norm, that is not finite; the device is asked once for all."""
        unchecked, self._unchecked = self._unchecked, []
        asked = [parts["loss"].float() for _, parts in unchecked]
        if norm is not None:
            asked.append(torch.as_tensor(norm, dtype=torch.float32, device=asked[0].device))
        said = torch.stack(asked).tolist()
        for (inputs, parts), loss in zip(unchecked, said, strict=False):
            if not math.isfinite(loss):
                self._stop(inputs, {name: float(part) for name, part in parts.items()})
        if norm is not None and not math.isfinite(said[-1]):
            raise NonFiniteLoss(
                f"The gradient norm at step {self.state.global_step + 1} is {said[-1]}, though the loss was finite. "
                f"{self._advice()}"
            )

    def _stop(self, inputs: StepInput, parts: dict[str, float]) -> None:
        """Save the batch that made the loss non-finite, and leave, even if it cannot be saved."""
        step = self.state.global_step + 1
        process = f"_process{self.args.process_index}" if self.accelerator.num_processes > 1 else ""
        path = self.run_folder / f"nonfinite_step{step}{process}.pt"
        more = inputs.unlabeled.batch if inputs.unlabeled is not None else None
        fate = failures.keep_batch(path, inputs.batch, parts, more)
        guilty = [name for name, value in parts.items() if value - value != 0.0]
        raise NonFiniteLoss(
            f"The loss at step {step} is not finite: {', '.join(guilty)}. The batch (images "
            f"{list(inputs.batch.image_ids)}{self._unlabeled_names(more)}) {fate}. {self._advice()}"
        )

    def _unlabeled_names(self, batch: Batch | None) -> str:
        if batch is None or self.unlabeled is None:
            return ""
        paths = {record.id: str(record.path) for record in self.unlabeled.given.dataset.index.images}
        return f", and without annotations {', '.join(paths[image] for image in batch.image_ids)}"

    def _advice(self) -> str:
        # A checkpoint of this very step holds the weights that led here.
        last = checkpoints.latest(self.run_folder / "checkpoints", before=self.state.global_step)
        kept = f"The last good checkpoint is {last}." if last else "No good checkpoint had been written yet."
        return f"{kept} Try a lower --learning_rate, a longer --warmup_steps, or float32 instead of mixed precision."

    def floating_point_ops(self, inputs: StepInput) -> int:
        """Not counted: the base class's rule is for language models."""
        return 0

    # ---- optimiser, log ----------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As the base class, with the backbone's learning rate scaled."""
        if self.optimizer is None:
            cls, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(self._parameter_groups(settings["lr"]), **settings)
        return self.optimizer

    def _parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault((".backbone." in name, decays(name, parameter)), []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": learning_rate * (self.args.backbone_lr_scale if backbone else 1.0),
                "weight_decay": self.args.weight_decay if decay else 0.0,
            }
            for (backbone, decay), parameters in groups.items()
        ]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every loss part since the last entry."""
        if "loss" in logs and self._steps_in_sums:  # not _part_sums: one process alone may lack them
            logs |= self._mean_parts()
            self._part_sums, self._steps_in_sums = {}, 0
        super().log(logs, start_time)

    def _mean_parts(self) -> dict[str, float]:
        """Mean of every part over steps and processes; a process lacks parts where its images held no object."""
        names = sorted(self._part_sums)
        means = [self._part_sums[name].float() / max(self._steps_in_sums, 1) for name in names]
        own = torch.stack(means).tolist() if means else []
        every = gather_object([dict(zip(names, own, strict=True))])
        return {
            name: sum(process.get(name, 0.0) for process in every) / len(every) for name in sorted(set().union(*every))
        }

    # ---- evaluation --------------------------------------------------------------------------------------

    @property
    def evaluated(self) -> DetrAdapter:
        """What is evaluated and kept: the moving average, or the student without one."""
        adapter = self.distiller.adapter
        return adapter.rebind(self.average.model) if self.average is not None else adapter

    def get_train_dataloader(self) -> Any:
        """As the base class; a signal does not end the processes that load."""
        return shield(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As the base class, with every image: ``dataloader_drop_last`` is about training."""
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return shield(super().get_eval_dataloader(eval_dataset))
        finally:
            self.args.dataloader_drop_last = dropped

    def evaluate(
        self,
        eval_dataset: DetectionDataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """COCO metrics of the moving average; only detections are kept in memory."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        self._refuse_broken_weights("nothing can be measured")
        self._share_buffers()
        began = time.perf_counter()
        evaluator = CocoEvaluator(dataset.index.ground_truth(), dataset.index.category_ids)
        with self.accelerator.autocast():
            batches = until(self.asked_to_end, self.get_eval_dataloader(dataset))
            result = evaluate_detector(self.evaluated, batches, evaluator, accelerator=self.accelerator)
        metrics = {
            f"{metric_key_prefix}_{name}": value for name, value in result.as_dict().items() if name != "per_class"
        }
        timing = {f"{metric_key_prefix}_runtime": round(time.perf_counter() - began, 4)}
        self.log({name: value for name, value in metrics.items() if value is not None} | timing)
        self._show_pictures()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _show_pictures(self) -> None:
        """What the evaluated model finds on a few images, to TensorBoard if it is in use."""
        writers = [getattr(callback, "tb_writer", None) for callback in self.callback_handler.callbacks]
        writer = next((writer for writer in writers if writer is not None), None)
        if self.pictures is None or writer is None:
            return
        for name, pixels in self.pictures(self.evaluated):
            writer.add_image(name, pixels, self.state.global_step, dataformats="HWC")

    def _share_buffers(self) -> None:
        """One process's batch-norm statistics for all: each has seen other images, and the first one is saved."""
        if self.accelerator.num_processes > 1:
            for buffer in self.evaluated.model.buffers():
                broadcast(buffer, from_process=0)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Keep the weights of a new best AP as ``best/``; where no image holds an object, there is none."""
        name = str(self.args.metric_for_best_model).removeprefix("eval_")
        if metrics.get(f"eval_{name}", 0.0) is None:
            return False
        is_best = bool(super()._determine_best_metric(metrics, trial))
        if is_best:
            self.keep("best")
        return is_best

    def keep(self, name: str) -> None:
        """Write the evaluated weights as ``<run>/<name>``, replacing it in one move."""
        if self.save_student is None or not self.args.should_save:
            return
        with self.told(), whole_folder(self.run_folder / name) as fresh:
            self.save_student(self.evaluated, fresh)

    # ---- checkpoints -------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write student, projections and average, not the teacher."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            self._refuse_broken_weights("they are not saved")
            checkpoints.save(folder, self.distiller, self.average, self.identity)

    def _refuse_broken_weights(self, so: str) -> None:
        if not all(bool(tensor.isfinite().all()) for tensor in self.distiller.state_dict().values()):
            raise NonFiniteLoss(
                f"The weights after step {self.state.global_step} are not finite; {so}. {self._advice()}"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Restore what ``_save`` wrote, refusing another run's checkpoint."""
        checkpoints.load(Path(resume_from_checkpoint), self.distiller, self.average, self.identity)
