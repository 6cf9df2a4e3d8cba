"""Reading a folder of one of our models: configuration and tensors, checked against each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..configuration.configuration_towers import TEXT_CONFIGS, VISION_CONFIGS
from .common import ConversionError, listing
from .json_files import read_json
from .mapping.plan import MODEL_CLASSES
from .sources.weights import read_checkpoint


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
    """Reads a folder of a dual model or of CoCa, weights in shards included.

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
    if model_type in {**VISION_CONFIGS, **TEXT_CONFIGS}:
        raise ConversionError(f"{path} holds a single tower ({model_type}); expected a whole model, with both towers.")
    if model_type not in MODEL_CLASSES:
        raise ConversionError(
            f"{path} holds a model of type {model_type!r}; expected one of ours: {', '.join(MODEL_CLASSES)}."
        )
    try:
        config = MODEL_CLASSES[model_type].config_class.from_pretrained(path)
        with torch.device("meta"):
            model = MODEL_CLASSES[model_type](config)
    except Exception as error:  # a configuration is wrong in many ways
        raise ConversionError(f"{config_file} does not describe a model that can be built: {error}") from error
    if getattr(config, "quantization_config", None) is not None:
        raise ConversionError(f"{path} holds quantised weights, which cannot be converted: give the original ones.")
    tensors = _read_tensors(path)
    _check_tensors(path, model, tensors)
    return ConvertedFolder(path, model, tensors)


def _read_tensors(path: Path) -> Mapping[str, torch.Tensor]:
    index = path / SAFE_WEIGHTS_INDEX_NAME
    weights = index if index.is_file() else path / SAFE_WEIGHTS_NAME
    if not weights.is_file():
        raise ConversionError(f"{path} holds no weights: expected {weights.name}, or shards and {index.name}.")
    return read_checkpoint(weights).tensors


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
