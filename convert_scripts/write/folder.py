"""Folders of our models: written piece by piece, and read with their tensors checked against their
configuration."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers import GenerationConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from ...configuration.configuration_towers import TEXT_CONFIGS, VISION_CONFIGS
from ..common import ConversionError, argument, dtype_name, failing_as, listing, read_json
from ..mapping.plan import MODEL_CLASSES, ConversionPlan, DerivedPlan
from ..sources.weights import read_weights
from .safetensors import write_safetensors


DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

# Dtypes in which models are loaded.
LOADABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A dtype by name or itself; `None` stays. Raise `ConversionError` for another name, or one of no floats."""
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ConversionError(
                f"{argument('dtype')} must be one of {', '.join(DTYPES)}, or a torch.dtype, got {dtype!r}."
            )
        return DTYPES[dtype]
    if dtype is not None and dtype not in LOADABLE:
        raise ConversionError(
            f"{argument('dtype')} must be a floating point dtype that models are loaded in, "
            f"{', '.join(map(str, LOADABLE))}, got {dtype}."
        )
    return dtype


def output_dtype(plan: ConversionPlan, dtype: str | torch.dtype | None) -> torch.dtype:
    """The dtype to write: the one asked for, else the checkpoint's; fp32 for one of several dtypes, or of float8."""
    dtype = parse_dtype(dtype)
    if dtype is not None:
        return dtype
    dtypes = source_dtypes(plan)
    return dtypes.pop() if len(dtypes) == 1 and dtypes <= set(LOADABLE) else torch.float32


def source_dtypes(plan: ConversionPlan) -> set[torch.dtype]:
    """The dtypes of a checkpoint's floating point numbers."""
    return {tensor.dtype for tensor in plan.source_tensors.values() if tensor.is_floating_point()}


def dtype_notes(plan: ConversionPlan, dtype: torch.dtype) -> tuple[str, ...]:
    """Notes, for the report, on dtypes of a checkpoint that are not written."""
    lost = sorted(dtype_name(other) for other in source_dtypes(plan) - set(LOADABLE))
    return (f"written as {dtype_name(dtype)}: models are not loaded in {' and '.join(lost)}",) if lost else ()


def write_model(folder: Path, plan: ConversionPlan | DerivedPlan, dtype: torch.dtype, max_shard_size: int | str):
    """Write `config.json`, `generation_config.json` and the weights, as `save_pretrained` would.

    The source's tensors are views of a mapped file, and are cast and transposed in blocks: memory stays small.

    Args:
        folder: an existing folder.
        plan: the model and its tensors.
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
    if not re.fullmatch(r"0*[1-9]\d*([KMGTP]?B)?", str(max_shard_size), re.IGNORECASE):
        raise ConversionError(f"max_shard_size must be a number of bytes or like '5GB', got {max_shard_size!r}.")
    try:
        split = split_state_dict_into_shards_factory(
            layout,
            get_storage_size=lambda tensor: tensor.numel() * tensor.dtype.itemsize,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ConversionError(
            f"{argument('max_shard_size')} must be a number of bytes or like '5GB': {error}"
        ) from error
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


@dataclass(frozen=True)
class ConvertedFolder:
    """A folder that a conversion, or `save_pretrained` of one of our models, has written.

    Args:
        path: the folder.
        model: our model on the meta device.
        tensors: its tensors, views of the memory-mapped files.
    """

    path: Path
    model: PreTrainedModel
    tensors: Mapping[str, torch.Tensor]

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config


def read_converted_folder(path: Path) -> ConvertedFolder:
    """Read a folder of a dual model or of CoCa, weights in shards included.

    Raises:
        ConversionError: it is not such a folder, or its tensors are not those of its configuration.
    """
    config_file = path / CONFIG_NAME
    if not config_file.is_file():
        raise ConversionError(
            f"{path} is not a folder of a converted model: it has no {CONFIG_NAME}. Of a repository on the Hub give a "
            "local copy (`hf download ORG/NAME --local-dir FOLDER`)."
        )
    model_type = read_json(config_file).get("model_type")
    if not isinstance(model_type, str):
        raise ConversionError(f"{config_file} names no model_type, which is a string: got {model_type!r}.")
    if model_type in {**VISION_CONFIGS, **TEXT_CONFIGS}:
        raise ConversionError(f"{path} holds a single tower ({model_type}); expected a whole model, with both towers.")
    if model_type not in MODEL_CLASSES:
        raise ConversionError(
            f"{path} holds a model of type {model_type!r}; expected one of ours: {', '.join(MODEL_CLASSES)}."
        )
    with failing_as(f"{config_file} does not describe a model that can be built"), torch.device("meta"):
        config = MODEL_CLASSES[model_type].config_class.from_pretrained(path)
        model = MODEL_CLASSES[model_type](config)
    if getattr(config, "quantization_config", None) is not None:
        raise ConversionError(f"{path} holds quantised weights, which cannot be converted: give the original ones.")
    generation_file = path / GENERATION_CONFIG_NAME
    if generation_file.is_file():  # with which the model is loaded
        read_json(generation_file)
        with failing_as(f"{generation_file} does not describe how to generate"):
            GenerationConfig.from_pretrained(path)
    tensors = {**_read_tensors(path)}
    for tied, source in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if source in tensors:  # `save_pretrained` writes one of them
            tensors.setdefault(tied, tensors[source])
    _check_tensors(path, model, tensors)
    return ConvertedFolder(path, model, tensors)


def _read_tensors(path: Path) -> Mapping[str, torch.Tensor]:
    index = path / SAFE_WEIGHTS_INDEX_NAME
    weights = index if index.is_file() else path / SAFE_WEIGHTS_NAME
    if not weights.is_file():
        raise ConversionError(f"{path} holds no weights: expected {weights.name}, or shards and {index.name}.")
    return read_weights(weights).tensors


def _check_tensors(path: Path, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]):
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    problems = {
        "Tensors without a place": [name for name in tensors if name not in shapes],
        "Tensors that are missing": [name for name in shapes if name not in tensors],
        "Tensors of another shape": [
            f"{name}: got {tuple(tensors[name].shape)}, expected {tuple(shape)}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    if any(problems.values()):
        raise ConversionError(
            f"The weights in {path} are not those of a {type(model).__name__} with this {CONFIG_NAME}. "
            + "\n".join(f"{problem}:{listing(names)}" for problem, names in problems.items() if names)
        )
