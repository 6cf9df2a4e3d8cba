"""What tests of training run on each rank; see `ranks`."""

import json
import os
import sys
from collections.abc import Callable

import numpy as np
import torch
from accelerate import DistributedType, PartialState
from tiny_models import tiny_inputs
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import AutoModel, TrainerCallback

from open_clip_transformers import lock_image_tower
from open_clip_transformers.training.losses import (
    caption_loss,
    distillation_loss,
    sigmoid_contrastive_loss,
    softmax_contrastive_loss,
)
from open_clip_transformers.training.trainer import ContrastiveTrainer, ContrastiveTrainingArguments


PAIRS = 12  # of the whole batch
WIDTHS = {"image": 7, "text": 5, "embed": 6, "teacher": 9}


def world() -> distributed.ProcessGroup | None:
    return distributed.group.WORLD if distributed.is_initialized() else None


class Pair(torch.nn.Module):
    """Two linear towers, with a temperature and a bias."""

    def __init__(self, width: int, bias: float | None = None, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.image = torch.nn.Parameter(torch.randn(WIDTHS["image"], width, generator=generator))
        self.text = torch.nn.Parameter(torch.randn(WIDTHS["text"], width, generator=generator))
        self.logit_scale = torch.nn.Parameter(torch.tensor(1.9))
        self.logit_bias = None if bias is None else torch.nn.Parameter(torch.tensor(bias))

    def embed(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        normalize = torch.nn.functional.normalize
        return normalize(images @ self.image, dim=-1), normalize(texts @ self.text, dim=-1)


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(PAIRS, WIDTHS["image"], generator=generator),
        torch.randn(PAIRS, WIDTHS["text"], generator=generator),
    )


def captions() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of tokens and labels, of which the texts have different numbers."""
    generator = torch.Generator().manual_seed(6)
    hidden = torch.randn(PAIRS, 8, WIDTHS["text"], generator=generator)
    labels = torch.randint(1, WIDTHS["embed"], (PAIRS, 8), generator=generator)
    for row in range(PAIRS):
        labels[row, 2 + row % 6 :] = -100
    return hidden, labels


def model_of(kind: str) -> Pair:
    return Pair(WIDTHS["embed"], bias=-2.0 if kind == "sigmoid" else None)


def own(rows: torch.Tensor) -> torch.Tensor:
    """The rows of this rank."""
    return rows.chunk(distributed.get_world_size())[distributed.get_rank()]


def loss_gradients(kind: str) -> dict[str, np.ndarray]:
    """The loss of this rank and the gradients as DDP averages them."""
    model = model_of(kind)
    images, texts = map(own, pairs())
    embeds, scale, bias = model.embed(images, texts), model.logit_scale.exp(), model.logit_bias
    if kind == "sigmoid":
        loss = sigmoid_contrastive_loss(*embeds, scale, bias, group=world())
    elif kind == "caption":
        hidden, labels = map(own, captions())
        loss = caption_loss(hidden @ model.text, labels, group=world())
    else:
        loss = softmax_contrastive_loss(*embeds, scale, bias, group=world())
    if kind == "distillation":
        teacher = Pair(WIDTHS["teacher"], seed=1)
        loss = loss + distillation_loss(
            *embeds, scale, *teacher.embed(images, texts), teacher.logit_scale.exp(), group=world()
        )
        loss.backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())
    else:
        loss.backward()
    return averaged(model, loss)


def averaged(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, np.ndarray]:
    tensors = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    tensors["loss"] = loss.detach().clone()
    for tensor in tensors.values():
        distributed.all_reduce(tensor)
        tensor /= distributed.get_world_size()
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def loss_of_rows(kind: str, images: list[int], texts: list[int], width: int = 6):
    """The loss of other numbers of images and texts on each rank."""
    rank = distributed.get_rank()
    loss = {"softmax": softmax_contrastive_loss, "sigmoid": sigmoid_contrastive_loss}[kind]
    loss(torch.ones(images[rank], 6), torch.ones(texts[rank], width), torch.tensor(1.0), group=world())


def num_logits() -> int:
    """The number of elements of the largest tensor that the loss makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            outputs = function(*args, **(kwargs or {}))
            for output in outputs if isinstance(outputs, tuple) else (outputs,):
                if isinstance(output, torch.Tensor):
                    self.numel = max(self.numel, output.numel())
            return outputs

    model = model_of("softmax")
    embeds = [embeds.repeat(20, 1) for embeds in model.embed(*map(own, pairs()))]
    with Largest() as largest:
        softmax_contrastive_loss(*embeds, model.logit_scale.exp(), group=world()).backward()
    return largest.numel


# What follows trains models of a folder.


def training_arguments(folder, **changes):
    """Arguments of a short training on the CPU, silent and without clipping."""
    arguments = {
        "output_dir": str(folder),
        "max_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
    }
    made = ContrastiveTrainingArguments(**{**arguments, **changes})
    if is_sharded(changes):
        # Where ranks have no device but the CPU, accelerate leaves FSDP out without a word.
        assert made.distributed_state.distributed_type == DistributedType.MULTI_CPU
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return made


def load_model(folder, **kwargs):
    return AutoModel.from_pretrained(folder, **kwargs)


def training_batch(model, size: int, pad_token_id: int = 0) -> dict[str, torch.Tensor]:
    """Pairs, and for CoCa labels; the texts have different lengths."""
    inputs = tiny_inputs(model, batch=size, length=model.config.text_config.max_position_embeddings)
    if hasattr(model, "lm_head"):
        inputs["labels"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == pad_token_id, -100)
    return inputs


def micro_batches(inputs: dict[str, torch.Tensor], accumulation: int, rank: int, ranks: int) -> list[dict]:
    """The batches of one rank, of which those of all ranks make the rows of `inputs` in their order."""
    size = len(inputs["input_ids"]) // accumulation // ranks
    starts = [step * ranks * size + rank * size for step in range(accumulation)]
    return [{name: value[start : start + size] for name, value in inputs.items()} for start in starts]


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def make_trainer(model, args, batches: list[dict], **keywords):
    """A trainer that is given these batches, and keeps the gradients of its first step in `gradients`."""

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            trainer.gradients = {
                name: full(parameter.grad).numpy().copy()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }

    class FixedBatches(ContrastiveTrainer):
        def get_train_dataloader(self):
            return DataLoader(batches, batch_size=None)

    trainer = FixedBatches(model, args, train_dataset=batches, callbacks=[Gradients()], **keywords)
    return trainer


def with_lora(model):
    import peft

    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    return peft.get_peft_model(model, config)


def with_locked_images(model):
    lock_image_tower(model)
    return model


def with_dropout(model):
    """A twin that drops patches, attention and whole branches, in training."""
    config = model.config
    config.vision_config.patch_dropout = 0.4
    for part in (config.vision_config, config.text_config):
        part.drop_path_rate = part.attention_dropout = 0.2
    twin = type(model)(config)
    twin.load_state_dict(model.state_dict())
    return twin.train()


def error_with_dropout(folder: str, size: int, setting: dict) -> float:
    """The relative error of the gradients of a step part by part, to those where all activations are held."""
    rank, ranks, part = distributed.get_rank(), distributed.get_world_size(), setting["mini_batch_size"]
    model = with_dropout(load_model(folder))
    accumulation = setting["gradient_accumulation_steps"]
    batches = micro_batches(training_batch(model, size), accumulation, rank, ranks)
    rows = len(batches[0]["input_ids"])
    torch.manual_seed(rank)
    for batch in batches:
        outputs = [
            model(**{name: value[start : start + part] for name, value in batch.items()})
            for start in range(0, rows, part)
        ]
        embeds = [torch.cat([output[name] for output in outputs]) for name in ("image_embeds", "text_embeds")]
        (softmax_contrastive_loss(*embeds, model.logit_scale.exp(), group=world()) / accumulation).backward()
    expected = averaged(model, torch.tensor(0.0))
    model.zero_grad(set_to_none=True)

    class Seed(TrainerCallback):
        def on_step_begin(self, *arguments, **keywords):
            torch.manual_seed(rank)

    trainer = make_trainer(model, training_arguments(folder, per_device_train_batch_size=rows, **setting), batches)
    trainer.add_callback(Seed())
    trainer.train()
    difference = sum(((value - expected[name]) ** 2).sum() for name, value in trainer.gradients.items())
    return float((difference / sum((value**2).sum() for value in expected.values())) ** 0.5)


def trained_with_evaluations(folder: str, size: int) -> tuple[list[float], list[float]]:
    """Losses of the evaluations of a training, and those that the first rank alone computes meanwhile."""
    model, alone = load_model(folder), []

    class Alone(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.is_world_process_zero:
                alone.append(trainer.compute_loss(model.eval(), training_batch(model, size)).item())

    args = training_arguments(
        f"{folder}_evaluated", max_steps=2, learning_rate=0.01, eval_strategy="steps", eval_steps=1, mini_batch_size=2
    )
    pairs = Pairs(model, size)
    trainer = ContrastiveTrainer(model, args, train_dataset=Pairs(model, 16), eval_dataset=pairs, callbacks=[Alone()])
    trainer.train()
    return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry], alone


def trained_gradients(
    folder: str, size: int, settings: list[dict], teacher: str | None = None, adapt: Callable | None = None
) -> list[dict]:
    """The gradients and the loss of a step, with each of some settings of the trainer."""
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    found = []
    for setting in settings:
        model = model_to_train(folder, setting)
        batch = training_batch(model, size)
        if adapt is not None:
            model = adapt(model)
        accumulation = setting.get("gradient_accumulation_steps", 1)
        batches = micro_batches(batch, accumulation, rank, ranks)
        args = training_arguments(folder, per_device_train_batch_size=len(batches[0]["input_ids"]), **setting)
        keywords = {} if teacher is None else {"teacher_model": load_model(teacher)}
        trainer = make_trainer(model, args, batches, **keywords)
        trainer.train()
        check_sharded(trainer, setting)
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append({**trainer.gradients, "loss": np.array(losses[0])})
    return found


FSDP2 = {"fsdp": True, "fsdp_config": {"version": 2}}


def is_sharded(arguments: dict) -> bool:
    return "fsdp" in arguments or os.environ.get("ACCELERATE_USE_FSDP") == "true"


def model_to_train(folder: str, arguments: dict):
    """The model of a folder, for FSDP2 without scalars."""
    return load_model(folder, **({"nonscalar_logit_scale": True} if is_sharded(arguments) else {}))


def check_sharded(trainer, arguments: dict):
    assert isinstance(trainer.model_wrapped, FSDPModule) == is_sharded(arguments)


class Pairs(torch.utils.data.Dataset):
    """As many pairs for a model, one by one."""

    def __init__(self, model, size: int):
        self.batch = training_batch(model, size)

    def __len__(self) -> int:
        return len(self.batch["input_ids"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[index] for name, value in self.batch.items()}


def trained(folder: str, size: int, arguments: dict, resume_from: str | None = None) -> dict:
    """Train the model of a folder on pairs that Trainer shares out, and save it; what came of it."""
    model = model_to_train(folder, arguments)
    output = f"{folder}_{'fsdp' if is_sharded(arguments) else 'ddp'}"
    args = training_arguments(output, **{"learning_rate": 0.01, **arguments})
    trainer = ContrastiveTrainer(model, args, train_dataset=Pairs(model, size))
    trainer.train(resume_from_checkpoint=resume_from)
    check_sharded(trainer, arguments)
    trainer.save_model(f"{output}_trained")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"steps": trainer.state.global_step, "losses": losses, "output": output}


def launched():
    """`trained` by `accelerate launch`, of arguments as JSON, under FSDP2 if it says so."""
    result = trained(**json.loads(sys.argv[1]))
    if distributed.get_rank() == 0:
        print("RESULT", json.dumps(result))


def world_size_by_default(folder: str) -> int:
    """The number of ranks as torchrun alone tells it."""
    del os.environ["ACCELERATE_USE_CPU"]
    return ContrastiveTrainingArguments(folder).world_size


def trained_by_plain_trainer(folder: str) -> list[str]:
    """Warnings of transformers' own Trainer on several ranks."""
    import logging

    from transformers import Trainer, TrainingArguments

    from open_clip_transformers.modeling import modeling_open_clip

    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    modeling_open_clip.logger.addHandler(handler)
    model = load_model(folder)
    dataset = [{**example, "return_loss": True} for example in Pairs(model, 8)]

    def collate(examples):
        batch = {name: torch.stack([example[name] for example in examples]) for name in ("input_ids", "pixel_values")}
        return {**batch, "return_loss": True}

    args = TrainingArguments(
        f"{folder}_plain", max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    Trainer(model, args, train_dataset=dataset, data_collator=collate).train()
    return [message for message in messages if "one rank alone" in message]


def trained_where_one_fails(folder: str):
    """Train on batches of which the last rank's is wrong."""
    model = load_model(folder)
    rank = distributed.get_rank()
    batch = micro_batches(training_batch(model, 8), 1, rank, 2)[0]
    batch["input_ids"] = batch["input_ids"][: 2 if rank else 4]
    make_trainer(model, training_arguments(folder, per_device_train_batch_size=4), [batch]).train()


def trained_scalar_under_fsdp2(folder: str):
    model = load_model(folder)
    ContrastiveTrainer(model, training_arguments(folder, **FSDP2), train_dataset=Pairs(model, 4)).train()


# What follows reads streamed data.


class Numbered:
    """A collator of examples with a `number` alone: it fills the images, and is added to the texts."""

    def __init__(self, model):
        self.batch = training_batch(model, 1)

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        numbers = torch.tensor([example["number"] for example in examples])
        batch = {name: value.repeat_interleave(len(numbers), dim=0) for name, value in self.batch.items()}
        batch["pixel_values"][:] = numbers[:, None, None, None]
        return batch


def streamed_dataset(kind: str, source, size: int, shards: int):
    """`size` numbered examples as `kind` of a streamed data set; `source` is a pattern of tars."""
    if kind == "torch":

        class Numbers(torch.utils.data.IterableDataset):
            def __iter__(self):
                worker = torch.utils.data.get_worker_info()
                index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
                return ({"number": number} for number in range(index, size, workers))

        return Numbers()
    if kind.startswith("datasets"):
        import datasets
        from datasets.distributed import split_dataset_by_node

        dataset = datasets.Dataset.from_dict({"number": list(range(size))}).to_iterable_dataset(num_shards=shards)
        if "shuffled" in kind:
            dataset = dataset.shuffle(seed=None if "unseeded" in kind else 3, buffer_size=4)
        if "split" in kind:
            dataset = split_dataset_by_node(dataset, distributed.get_rank(), distributed.get_world_size())
        return dataset
    import webdataset

    nodes = None if "unsplit" in kind else webdataset.split_by_node
    splitters = {} if "one_node" in kind else {"nodesplitter": nodes}
    if "unworked" in kind:
        splitters["workersplitter"] = None
    dataset = webdataset.WebDataset(source, shardshuffle=False, seed=0, **splitters)
    return dataset.decode().rename(number="cls")


def streamed_numbers(folder: str, kind: str, source, arguments: dict, size: int = 24, shards: int = 4) -> list[list]:
    """The numbers in each batch that this rank trains on, or the error."""
    model = load_model(folder)

    class Recording(ContrastiveTrainer):
        def compute_loss(self, model, inputs, *arguments, **keywords):
            seen.append(inputs["pixel_values"][:, 0, 0, 0].int().tolist())
            return super().compute_loss(model, inputs, *arguments, **keywords)

    seen: list[list] = []
    args = training_arguments(f"{folder}_streamed", **{"per_device_train_batch_size": 3, **arguments})
    dataset = streamed_dataset(kind, source, size, shards)
    trainer = Recording(model, args, train_dataset=dataset, data_collator=Numbered(model))
    try:
        trainer.train()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return seen


def streamed(scenarios: list[tuple]) -> list[list[list]]:
    """What `streamed_numbers` gives for each of some scenarios."""
    return [streamed_numbers(*scenario) for scenario in scenarios]


if __name__ == "__main__":
    launched()
