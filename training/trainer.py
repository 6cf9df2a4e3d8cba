"""A Trainer for contrastive losses over all ranks, and its arguments (open_clip: `train.py`, `main.py`)."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from accelerate.data_loader import DataLoaderDispatcher, prepare_data_loader
from accelerate.utils import is_compiled_module
from torch import distributed, nn
from torch.distributed import ProcessGroup
from torch.utils.checkpoint import get_device_states, set_device_states
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.trainer_utils import has_length, seed_worker
from transformers.utils import ModelOutput, logging

from ..configuration.configuration_common import height_and_width
from .batch_norms import keep_running_statistics
from .losses import (
    caption_loss,
    check_labels,
    check_rows,
    count_targets,
    distillation_loss,
    sigmoid_contrastive_loss,
    softmax_contrastive_loss,
)
from .pairs import ContrastiveCollator
from .parameter_groups import decayed_parameter_names, scale_learning_rates
from .streams import agree_on_batches, check_workers, is_shared_by_rank, rank_share


logger = logging.get_logger(__name__)

MAX_LOGIT_SCALE = math.log(100)
# Argument -> what a model must have for it to mean anything.
_WEIGHTS = {
    "contrastive_loss_weight": "a decoder or a teacher_model",
    "caption_loss_weight": "a decoder",
    "distillation_loss_weight": "a teacher_model",
}


@dataclass
class ContrastiveTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, and what [`ContrastiveTrainer`] takes beside them.

    Args:
        gather_across_devices: compare each pair with those of all ranks; else with those of its own rank alone.
            open_clip: `--gather-with-grad --local-loss`.
        mini_batch_size: number of pairs whose activations are held at once; the gradients are still those of the whole
            batch, for at least a third more time (GradCache, https://arxiv.org/abs/2101.06983). By default all of
            `per_device_train_batch_size`. Batch norms normalise by these pairs.
        clamp_logit_scale: keep `logit_scale` in [0, log(100)], as open_clip does, after each step.
        contrastive_loss_weight: weight of the contrastive loss beside another; by default that of CoCa's
            configuration, or 1.
        caption_loss_weight: weight of CoCa's caption loss; by default that of its configuration.
        distillation_loss_weight: weight of the distillation loss beside a `teacher_model`; by default 1.
        layer_decay: number in (0, 1] by which the learning rate falls from each layer of a tower to the one before it.
    """

    gather_across_devices: bool = field(default=True, metadata={"help": "Compare each pair with those of all ranks."})
    mini_batch_size: int | None = field(default=None, metadata={"help": "Pairs whose activations are held at once."})
    clamp_logit_scale: bool = field(default=True, metadata={"help": "Keep logit_scale in [0, log(100)]."})
    contrastive_loss_weight: float | None = field(default=None, metadata={"help": "Weight beside other losses."})
    caption_loss_weight: float | None = field(default=None, metadata={"help": "Weight of CoCa's caption loss."})
    distillation_loss_weight: float | None = field(default=None, metadata={"help": "Weight beside a teacher."})
    layer_decay: float | None = field(default=None, metadata={"help": "Fall of the learning rate a layer, in (0, 1]."})
    # Trainer would log 0 for a loss that is no number, while the weights become none.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Leave losses that are no numbers out."})
    # Collators make the model's inputs from columns of other names.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Drop columns that forward does not take."})

    def __post_init__(self):
        # accelerate would leave out ranks that have no device but the CPU, and each would train alone.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()
        size = self.mini_batch_size
        if size is not None and (type(size) is not int or size < 1):
            raise ValueError(f"mini_batch_size is a number of pairs, got {size}.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is a number above 0 and at most 1, got {self.layer_decay}.")
        for name in _WEIGHTS:
            weight = getattr(self, name)
            if weight is not None and not 0 <= weight < math.inf:
                raise ValueError(f"{name} is a number of at least 0, got {weight}.")


class _ClampLogitScale(TrainerCallback):
    """Keep `logit_scale` where open_clip does."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        if args.clamp_logit_scale and model.logit_scale.requires_grad:
            with torch.no_grad():
                model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


class _RandomState:
    """The state of the random numbers of the CPU and of the devices of some tensors, to be had again."""

    def __init__(self, tensors: list[torch.Tensor]):
        self.cpu = torch.get_rng_state()
        self.devices = get_device_states(*tensors)

    def restore(self):
        torch.set_rng_state(self.cpu)
        set_device_states(*self.devices)


class ContrastiveTrainer(Trainer):
    """transformers' `Trainer` with the losses of CLIP, SigLIP and CoCa over the pairs of all ranks.

    Loop, wrapping, precision, schedules, clipping, checkpoints and loggers are those of `Trainer`. A dataset and its
    collator give `pixel_values` and `input_ids`, a text an image, and for CoCa `labels`. While training, the loss is
    that of the batch of all ranks; in an evaluation each rank compares its own pairs, and the mean is reported.

    Args:
        args: [`ContrastiveTrainingArguments`].
        teacher_model: a dual model that the model learns to match like (open_clip: `--distill-model`). It takes the
            same inputs, and may have embeddings of another width.
        arguments, keywords: those of `Trainer`.

    Raises:
        ValueError: a model without `logit_scale`, a teacher that cannot take the model's inputs, an argument that has
            no effect on this model or cannot be combined.
    """

    args: ContrastiveTrainingArguments
    current_gradient_accumulation_steps = 1  # until Trainer begins a step

    def __init__(self, *arguments, teacher_model: nn.Module | None = None, **keywords):
        super().__init__(*arguments, **keywords)
        if not isinstance(self.args, ContrastiveTrainingArguments):
            raise TypeError(f"args must be ContrastiveTrainingArguments, got {type(self.args).__name__}.")
        self.has_decoder = hasattr(self.model, "lm_head")
        self.teacher_model = teacher_model
        self._check_model()
        if teacher_model is not None:
            self.teacher_model = teacher_model.to(self.args.device).eval()
        # Trainer then divides the loss by the number of accumulated batches, and leaves the counting of tokens to us.
        self.model_accepts_loss_kwargs = False
        self.can_return_loss = True
        # Trainer divides already; early transformers let accelerate do so once more.
        self.accelerator.gradient_accumulation_steps = 1
        self.add_callback(_ClampLogitScale)

    def _check_model(self):
        if not hasattr(self.model, "logit_scale"):
            raise ValueError(
                f"{type(self.model).__name__} has no logit_scale: pass a model that compares images and texts."
            )
        if self.compute_loss_func is not None or self.args.label_smoothing_factor:
            raise ValueError(
                "ContrastiveTrainer has its own losses: leave out compute_loss_func and label_smoothing_factor."
            )
        if self.args.fp16 and self.args.device.type == "cpu":
            raise ValueError("fp16=True has no effect on the CPU: pass bf16=True, or leave it out.")
        if self.args.n_gpu > 1:
            raise ValueError(
                f"One process sees {self.args.n_gpu} GPUs, and would not compare the pairs of one with those of "
                "another: start one process a GPU with torchrun or accelerate launch."
            )
        if self.args.mini_batch_size is not None and self.is_deepspeed_enabled:
            raise ValueError(
                "DeepSpeed takes a step with each part of a batch: leave out mini_batch_size, or use FSDP."
            )
        has = {"a decoder": self.has_decoder, "a teacher_model": self.teacher_model is not None}
        for name, needs in _WEIGHTS.items():
            if getattr(self.args, name) is not None and not any(has[need] for need in needs.split(" or ")):
                raise ValueError(f"{name} weighs nothing: it needs {needs}, which this training has not.")
        if self.teacher_model is not None:
            _check_teacher(self.teacher_model, self.model)
        scale = self.model.logit_scale
        if self.args.clamp_logit_scale and scale.requires_grad and not scale.is_meta and scale.max() > MAX_LOGIT_SCALE:
            logger.warning(
                f"logit_scale is {scale.max():.3f}, and clamp_logit_scale brings it down to {MAX_LOGIT_SCALE:.3f} at "
                "the first step, as open_clip would: pass clamp_logit_scale=False to keep it."
            )

    def _check_training(self):
        """Raise `ValueError` where training could not begin, or would not learn."""
        self._check_columns(self.train_dataset)
        if self.args.eval_strategy != "no":
            named = isinstance(self.eval_dataset, dict)
            for dataset in self.eval_dataset.values() if named else [self.eval_dataset]:
                self._check_columns(dataset)
        learned = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        if not learned:
            raise ValueError("No parameter of the model can learn: unlock some, by requires_grad_(True).")
        if self.args.train_batch_size == 1 and self._loss_group() is None:
            raise ValueError(
                "A batch of one pair has nothing to be compared with, and teaches nothing: raise "
                "per_device_train_batch_size, or train on several ranks with gather_across_devices=True."
            )
        self._check_fsdp(learned)
        parallelism = getattr(self.accelerator, "parallelism_config", None)
        if self._loss_group() is not None and parallelism is not None and parallelism.non_data_parallel_size > 1:
            raise ValueError(
                "Ranks that share their pairs cannot be gathered: leave out tensor and context parallelism."
            )

    def _check_columns(self, dataset: Any):
        names = getattr(dataset, "column_names", None)  # of datasets, where it knows them
        if not names or _makes_columns(dataset):
            return
        collator = self.data_collator
        if isinstance(collator, ContrastiveCollator):
            collator.check_columns(names)
        elif "pixel_values" not in names and (
            collator is default_data_collator or isinstance(collator, DataCollatorWithPadding)
        ):
            raise ValueError(
                f"The data set has the columns {', '.join(map(repr, names))}, of which nothing makes pixel_values: "
                "pass data_collator=ContrastiveCollator(processor)."
            )

    def _check_fsdp(self, learned: set[str]):
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is None:
            return
        if plugin.fsdp_version != 2:
            raise ValueError("FSDP of version 1 is not supported: pass --fsdp_version 2 to accelerate launch.")
        if self.model.logit_scale.ndim == 0:
            raise ValueError(
                "FSDP2 takes no scalar parameters, and logit_scale is one: load the model with "
                "from_pretrained(..., nonscalar_logit_scale=True)."
            )
        if learned <= {"logit_scale", "logit_bias"}:  # it waits for gradients of embeddings
            raise ValueError(
                f"FSDP2 does not average the gradients of {' and '.join(sorted(learned))} where nothing else learns: "
                "unlock a tower, or train without FSDP."
            )
        kept = self.model.state_dict().keys() & dict(self.model.named_buffers()).keys()
        if kept and plugin.cpu_ram_efficient_loading:
            raise ValueError(
                f"accelerate cannot send {sorted(kept)[0]} from the first rank to the others, as it is no parameter: "
                "load the model on each rank, with --fsdp_cpu_ram_efficient_loading false."
            )

    def train(self, *arguments, **keywords):
        """Train, as `Trainer` does.

        Raises:
            ValueError: columns that the collator does not find, nothing that can learn, one pair a rank with nothing
                to compare it with, what FSDP cannot train, or ranks that share their pairs.
        """
        self._check_training()
        self._leave_input_embeddings_alone()
        return super().train(*arguments, **keywords)

    def _leave_input_embeddings_alone(self):
        """Have FSDP2 shard no module around the input embeddings: accelerate shards these too, which then fails."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is None or plugin.transformer_cls_names_to_wrap is not None:
            return
        embeddings = self.model.get_input_embeddings()
        around = {type(each).__name__ for each in self.model.modules() if embeddings in each.modules()}
        plugin.transformer_cls_names_to_wrap = [name for name in self.model._no_split_modules if name not in around]

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that weight decay applies to, see [`parameter_groups`]."""
        return decayed_parameter_names(model)

    def create_optimizer(self, *arguments, **keywords) -> torch.optim.Optimizer:
        """The optimizer of `Trainer`, with a learning rate for each layer where `layer_decay` is given."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*arguments, **keywords)
        if is_new and self.args.layer_decay is not None:
            scale_learning_rates(optimizer, self.model, self.args.layer_decay)
        return optimizer

    def get_train_dataloader(self) -> DataLoader:
        """The data loader of `Trainer`, but that of streamed data whose ranks can read their shares, see [`streams`].

        Other streamed data is read by the first rank, which sends batches to the others (accelerate's
        `dispatch_batches`).

        Raises:
            ValueError: less data than a batch; streamed data that would be read twice or never.
        """
        dataset = self.train_dataset
        check_workers(dataset, self.args.dataloader_num_workers)
        ranks, config = self.args.world_size, self.args.accelerator_config
        if not isinstance(dataset, IterableDataset):
            pairs, drops = self.args.train_batch_size * ranks, self.args.dataloader_drop_last
            if (ranks > 1 or drops) and has_length(dataset) and len(dataset) < pairs:
                where = f" of {ranks} ranks" if ranks > 1 else ""
                fate = "drops it (dataloader_drop_last)" if drops else "fills it up with the same pairs"
                raise ValueError(
                    f"The data set has {len(dataset)} pairs, fewer than a batch{where}, {pairs}, and accelerate {fate}"
                    ": lower per_device_train_batch_size."
                )
            return super().get_train_dataloader()
        share = None
        if not (config.dispatch_batches or config.split_batches):
            share = rank_share(dataset, self.args.process_index, ranks)
        elif ranks > 1 and is_shared_by_rank(dataset):
            raise ValueError(
                "accelerator_config shares batches among ranks whose data is shared out already, and part of it would "
                "never be read: leave out dispatch_batches and split_batches."
            )
        settings = {
            field.name.removeprefix("dataloader_"): getattr(self.args, field.name)
            for field in fields(self.args)
            if field.name.startswith("dataloader_")
        }
        loader = DataLoader(
            dataset if share is None else share,
            batch_size=self._train_batch_size,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description="training"),
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
            **settings,
        )
        if share is None:
            return self.accelerator.prepare(loader)
        return prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """The data loader of `Trainer`.

        Raises:
            ValueError: batches of one pair; streamed data that is shared out among ranks, of which accelerate would
                read the first's alone.
        """
        if self.args.eval_batch_size == 1:
            raise ValueError("A batch of one pair has nothing to be compared with: raise per_device_eval_batch_size.")
        name = eval_dataset if isinstance(eval_dataset, str) else None
        dataset = self.eval_dataset if eval_dataset is None else self.eval_dataset[name] if name else eval_dataset
        check_workers(dataset, self.args.dataloader_num_workers)
        if self.args.world_size > 1 and is_shared_by_rank(dataset):
            raise ValueError(
                "The first rank reads streamed data of an evaluation, and sends each rank its share; of this data it "
                "would read its own share alone: pass it as it was before it was split (nodesplitter=None)."
            )
        return super().get_eval_dataloader(eval_dataset)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The batches of a step and the number of tokens to learn in them, on all ranks or, without
        `average_tokens_across_devices`, on this one.

        Raises:
            ValueError: on every rank, what `compute_loss` refuses, ranks that run out of pairs at different times, or
                streamed data that is too short for one step.
        """
        batches, failure = self._read_batches(epoch_iterator, num_batches, device)
        loader = self.callback_handler.train_dataloader
        if self.args.world_size > 1 and not isinstance(loader, DataLoaderDispatcher):
            batches = agree_on_batches(
                batches,
                [len(batch["input_ids"]) for batch in batches],
                failure,
                num_batches,
                device,
                drop_last=self.args.dataloader_drop_last,
                same_rows=self._loss_group() is not None,
            )
        elif failure is not None:
            raise failure
        if len(batches) < num_batches and not has_length(loader):
            batches = self._end_of_stream(batches, num_batches)
        if not self.has_decoder:
            return batches, None
        counts = [count_targets(self._labels(batch)) for batch in batches]
        count = torch.stack(counts).sum().to(device) if counts else torch.tensor(0, device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            distributed.all_reduce(count)
        return batches, count

    def _read_batches(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Exception | None]:
        """The batches of a step; on several ranks, where the others must hear of it, an error in their place."""
        try:
            batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
            for batch in batches:
                self._check_inputs(batch)
        except Exception as error:
            return [], error
        return batches, None

    def _end_of_stream(self, batches: list, num_batches: int) -> list:
        """No batches: the gradients of fewer than a step takes would wait for the next pass, and weigh too much."""
        if self.state.global_step == 0:
            raise ValueError(
                f"One pass over the data gives this rank {len(batches)} batches, and a step takes {num_batches}: pass "
                "more data, or lower gradient_accumulation_steps or per_device_train_batch_size (with "
                "dataloader_drop_last=True each worker drops what fills no batch)."
            )
        if batches:
            logger.warning_once(
                f"The last {len(batches)} batches of a pass over the data are left out: a step takes {num_batches}."
            )
        return []

    def _loss_group(self) -> ProcessGroup | None:
        """The ranks whose pairs are compared with one another in training."""
        return distributed.group.WORLD if self.args.gather_across_devices and self.args.world_size > 1 else None

    def _weight(self, name: str) -> float:
        weight = getattr(self.args, name)
        if weight is None and self.has_decoder:
            weight = getattr(self.model.config, name, None)
        return 1.0 if weight is None else weight

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """The loss of a batch, in training that of the batches of all ranks.

        Args:
            model: the model as it was wrapped.
            inputs: of the model, with `labels` for CoCa.
            return_outputs: also return the model's outputs; the whole batch then goes through the model at once.
            num_items_in_batch: number of tokens to learn in the accumulated batches, see `get_batch_samples`.

        Raises:
            ValueError: images and texts of different number, on this or between ranks; `labels` that are missing, of
                another shape than the texts, or of a model without a decoder.
        """
        inputs = {name: value for name, value in inputs.items() if name != "return_loss"}
        group = self._loss_group() if model.training else None
        self._check_inputs(inputs)
        labels = self._labels(inputs) if self.has_decoder else None
        inputs.pop("labels", None)
        size = self.args.mini_batch_size
        if size is not None and model.training and not return_outputs and size < len(inputs["pixel_values"]):
            return self._loss_of_parts(model, inputs, labels, size, group, num_items_in_batch)
        outputs = model(**inputs)
        teacher_embeds = self._teacher_embeds(inputs)
        loss = self._pair_loss(outputs.image_embeds, outputs.text_embeds, self._scales(), teacher_embeds, group)
        if labels is not None:
            loss = loss + self._caption_loss(outputs.logits, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _check_inputs(self, inputs: dict[str, Any]):
        for name in ("pixel_values", "input_ids"):
            if not isinstance(inputs.get(name), torch.Tensor):
                raise ValueError(
                    f"A batch has {', '.join(inputs) or 'nothing'}, and needs {name}: see ContrastiveCollator."
                )
        images, texts = inputs["pixel_values"], inputs["input_ids"]
        check_rows({"images": len(images), "texts": len(texts)})
        labels = inputs.get("labels")
        if self.has_decoder and labels is None:
            raise ValueError(
                f"A batch for {type(self.model).__name__} needs labels, from which captions are learned: see "
                "ContrastiveCollator. To compare alone, train CoCaForZeroShotImageClassification."
            )
        if labels is not None and not self.has_decoder:
            raise ValueError(f"A batch has labels, and {type(self.model).__name__} no decoder to learn them.")
        if labels is not None:
            check_labels(labels, texts.shape[:2])

    def _labels(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The labels of a batch, -100 where there is nothing to learn, also for padding that they name."""
        return self.model.labels_to_learn(inputs["labels"], inputs.get("attention_mask"))

    def _scales(self) -> list[torch.Tensor]:
        """`logit_scale`, and `logit_bias` where there is one.

        They are read from the model behind its forward pass, in which they have a part too: DDP waits for their
        gradients, and FSDP2 leaves what belongs to the model itself whole until the backward pass.
        """
        bias = getattr(self.model, "logit_bias", None)
        return [self.model.logit_scale] if bias is None else [self.model.logit_scale, bias]

    def _teacher_embeds(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor] | None:
        if self.teacher_model is None:
            return None
        with torch.no_grad(), self.accelerator.autocast():
            outputs = self.teacher_model(**inputs)
        return outputs.image_embeds, outputs.text_embeds

    def _pair_loss(self, image_embeds, text_embeds, scales, teacher_embeds, group) -> torch.Tensor:
        scale, bias = scales[0].exp(), scales[1] if len(scales) > 1 else None
        is_sigmoid = "siglip" in self.model.config.model_type
        contrastive_loss = sigmoid_contrastive_loss if is_sigmoid else softmax_contrastive_loss
        loss = contrastive_loss(image_embeds, text_embeds, scale, bias, group)
        loss = self._weight("contrastive_loss_weight") * loss
        if teacher_embeds is None:
            return loss
        teacher = (*teacher_embeds, self.teacher_model.logit_scale.exp())
        distillation = distillation_loss(image_embeds, text_embeds, scale, *teacher, group=group)
        return loss + self._weight("distillation_loss_weight") * distillation

    def _caption_loss(self, logits, labels, num_items_in_batch) -> torch.Tensor:
        if num_items_in_batch is None:  # an evaluation
            return self._weight("caption_loss_weight") * caption_loss(logits, labels)
        across = self.args.average_tokens_across_devices and self.args.world_size > 1
        loss = caption_loss(logits, labels, num_items_in_batch, distributed.group.WORLD if across else None)
        # The mean is already over all accumulated batches, by whose number Trainer divides.
        return self._weight("caption_loss_weight") * loss * self.current_gradient_accumulation_steps

    def _first_embeds(self, model: nn.Module, part: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of a part, without gradients."""
        if _is_compiled(model):  # without gradients it is compiled to something else, that draws other random numbers
            with self._no_sync(model):
                outputs = model(**part)
        else:
            # Of captions the first pass needs nothing.
            kept = {"logits_to_keep": 1} if self.has_decoder else {}
            with torch.no_grad():
                outputs = model(**part, **kept)
        return outputs.image_embeds.detach(), outputs.text_embeds.detach()

    def _no_sync(self, model: nn.Module) -> AbstractContextManager:
        """Keep gradients on each rank until the last part; between the batches of a step, Trainer does."""
        return self.accelerator.no_sync(model) if self.accelerator.sync_gradients else nullcontext()

    def _loss_of_parts(self, model, inputs, labels, size, group, num_items_in_batch) -> torch.Tensor:
        """The loss of a batch that goes through the model part by part (GradCache).

        The embeddings of all parts, made without gradients, give the loss and its gradients with respect to them.
        Each part, made again with the same random numbers, takes these on to the model; the last one is left to
        Trainer, with the gradients of temperature and bias, so that ranks average once.
        """
        batch = len(inputs["pixel_values"])
        parts = [_rows(inputs, slice(start, start + size), batch) for start in range(0, batch, size)]
        states, embeds, teacher_embeds = [], [], []
        for part in parts:
            states.append(_RandomState([*part.values()]))
            embeds.append(self._first_embeds(model, part))
            teacher_embeds.append(self._teacher_embeds(part))
        images, texts = (torch.cat(rows).requires_grad_() for rows in zip(*embeds))
        scales = [scale.detach().clone().requires_grad_() for scale in self._scales()]
        teachers = None if self.teacher_model is None else [torch.cat(rows) for rows in zip(*teacher_embeds)]
        value = self._pair_loss(images, texts, scales, teachers, group)
        gradients = torch.autograd.grad(value, [images, texts, *scales])
        value = value.detach()

        def part_loss(index: int) -> torch.Tensor:
            """The loss whose gradients are those of a part; nothing else of its pass stays behind."""
            nonlocal value
            rows = slice(index * size, (index + 1) * size)
            states[index].restore()
            with keep_running_statistics(model):
                outputs = model(**parts[index])
            made = (outputs.image_embeds, outputs.text_embeds)
            loss = sum((tensor * gradient[rows]).sum() for tensor, gradient in zip(made, gradients))
            if labels is None:
                return loss
            captions = self._caption_loss(outputs.logits, labels[rows], num_items_in_batch)
            value = value + captions.detach()
            return loss + captions

        for index in range(len(parts) - 1):
            with self._no_sync(model):
                loss = part_loss(index)
                if loss.requires_grad:  # with both towers locked, temperature and bias alone learn, by the last part
                    self.accelerator.backward(loss / self.current_gradient_accumulation_steps)
        loss = part_loss(len(parts) - 1)
        loss = loss + sum((scale * gradient).sum() for scale, gradient in zip(self._scales(), gradients[2:]))
        return loss + (value - loss).detach()


def _is_compiled(model: nn.Module) -> bool:
    """Whether a model or a part of it is compiled."""
    return any(is_compiled_module(module) or module._compiled_call_impl is not None for module in model.modules())


def _makes_columns(dataset: Any) -> bool:
    """Whether the examples of a data set of datasets come from a function (`set_transform`)."""
    return (getattr(dataset, "format", None) or {}).get("type") == "custom"


def _rows(inputs: dict[str, Any], rows: slice, batch: int) -> dict[str, Any]:
    return {
        name: value[rows] if isinstance(value, torch.Tensor) and value.ndim and len(value) == batch else value
        for name, value in inputs.items()
    }


def _check_teacher(teacher: nn.Module, model: nn.Module):
    """Raise `ValueError` unless `teacher` is a dual model that takes the inputs of `model`."""
    if not hasattr(teacher, "logit_scale"):
        raise ValueError(f"The teacher_model {type(teacher).__name__} has no logit_scale: pass a dual model.")
    image_sizes = [_field(part, "vision_config", "image_size") for part in (teacher, model)]
    if None not in image_sizes and height_and_width(image_sizes[0]) != height_and_width(image_sizes[1]):
        raise ValueError(
            f"The teacher_model takes images of size {image_sizes[0]}, the model of {image_sizes[1]}: both see the "
            "same pixels; load one that fits."
        )
    for name in ("max_position_embeddings", "vocab_size"):
        theirs, ours = (_field(part, "text_config", name) for part in (teacher, model))
        if None not in (theirs, ours) and theirs < ours:
            raise ValueError(
                f"The teacher_model has text_config.{name} = {theirs}, the model {ours}: both see the same tokens; "
                "load one that fits."
            )


def _field(model: nn.Module, part: str, name: str) -> Any:
    return getattr(getattr(model.config, part, None), name, None)
