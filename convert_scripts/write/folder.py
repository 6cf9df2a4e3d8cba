"""Writing a converted model, piece by piece, into a temporary folder that takes its name when everything is right."""

import json
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, logging

from ..common import ConversionError
from ..derived_plan import DerivedPlan
from ..mapping.plan import ConversionPlan
from .safetensors import write_safetensors


DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def check_output(output: Path):
    """Raises `ConversionError` where `output` is a file, or a folder that holds something."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConversionError(f"{output} exists and is not an empty folder: give another output, or move it away.")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that becomes `output` at the end, or vanishes where anything fails.

    Raises:
        ConversionError: `output` is a file, or a folder that holds something.
    """
    check_output(output)
    folder = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}")
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
        yield folder
        if output.exists():
            output.rmdir()
        folder.rename(output)
    except BaseException:  # an interrupt leaves nothing behind either
        shutil.rmtree(folder, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # somebody else may have put something there
                parent.rmdir()
        raise


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by name or itself; `None` stays. Raises `ConversionError` for another name, or one of no floats."""
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ConversionError(f"dtype must be one of {', '.join(DTYPES)}, or a torch.dtype, got {dtype!r}.")
        return DTYPES[dtype]
    if dtype is not None and not dtype.is_floating_point:
        raise ConversionError(f"dtype must be a floating point dtype, got {dtype}.")
    return dtype


def output_dtype(plan: ConversionPlan, dtype: str | torch.dtype | None) -> torch.dtype:
    """The dtype to write: the one asked for, else the checkpoint's; fp32 for a checkpoint of several dtypes."""
    dtype = parse_dtype(dtype)
    if dtype is not None:
        return dtype
    dtypes = {tensor.dtype for tensor in plan.source_tensors.values() if tensor.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def write_model(folder: Path, plan: ConversionPlan | DerivedPlan, dtype: torch.dtype, max_shard_size: int | str):
    """Writes `config.json`, `generation_config.json` and the weights, as `save_pretrained` would.

    The source's tensors are views of a mapped file, and are cast and transposed in blocks: memory stays small.

    Args:
        folder: an existing folder.
        plan: what to write.
        dtype: of the tensors written.
        max_shard_size: largest weights file, in bytes or as in `"5GB"`.
    """
    model = plan.model
    model.config.architectures = [type(model).__name__]
    for config in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
        config.dtype = dtype
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)

    layout = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in plan.layout.items()}
    try:
        split = split_state_dict_into_shards_factory(
            layout,
            get_storage_size=lambda tensor: tensor.numel() * tensor.dtype.itemsize,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ConversionError(f"max_shard_size must be a number of bytes or like '5GB': {error}") from error
    shards: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in layout.items():
        shards[split.tensor_to_filename[key]][key] = tensor
    with logging.tqdm(total=len(layout), desc="Converting tensors", unit="tensor") as progress:
        for filename, shard in shards.items():
            write_safetensors(folder / filename, shard, _announced(plan.converted(shard), progress.update))
    if split.is_sharded:
        index = {
            "metadata": {"total_parameters": model.num_parameters(), **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _announced(items: Iterable, announce: Callable[[], object]) -> Iterator:
    for item in items:
        yield item
        announce()
