"""Folders of tiny models with processors and CLIP's vocabulary, as a conversion writes them, without open_clip."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from open_clip_transformers.configuration.configuration_common import height_and_width
from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.mapping.plan import MODEL_CLASSES
from open_clip_transformers.processing.image_processing_open_clip import OpenClipImageProcessor
from open_clip_transformers.processing.processing_coca import CoCaProcessor
from open_clip_transformers.processing.processing_open_clip import OpenClipProcessor
from open_clip_transformers.processing.tokenization_open_clip import OpenClipTokenizer


CLIP_VOCABULARY = {"text_cfg": {"vocab_size": 49408, "context_length": 23}}
COCA_CLIP_VOCABULARY = {**CLIP_VOCABULARY, "multimodal_cfg": {"vocab_size": 49408, "context_length": 23}}


def randomize(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """`model` in eval mode, with weights so large that every input shows in the outputs."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name in ("logit_scale", "logit_bias"):
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.ndim == 1 and name.endswith(".weight")
        parameter.data = 1 + 0.3 * noise if is_norm else 0.3 * noise
    return model.eval()


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]):
    """Write the weights of a folder again after `change(tensors)`, in a file of its own."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def build_processor(model: PreTrainedModel, tokenizer: OpenClipTokenizer | None = None) -> ProcessorMixin:
    """A processor for a tiny model, by default with CLIP's vocabulary."""
    height, width = height_and_width(model.config.vision_config.image_size)
    image_processor = OpenClipImageProcessor(size={"height": height, "width": width})
    tokenizer = tokenizer or OpenClipTokenizer(model_max_length=model.config.text_config.max_position_embeddings)
    processor_class = CoCaProcessor if isinstance(model, GenerationMixin) else OpenClipProcessor
    return processor_class(image_processor=image_processor, tokenizer=tokenizer)


def save_tiny_folder(folder: Path, model_cfg: dict) -> PreTrainedModel:
    """Saves a tiny model of an open_clip `model_cfg`, and its processor; returns the model."""
    return save_tiny_model(folder, build_config(model_cfg))


def save_tiny_model(
    folder: Path, config: PreTrainedConfig, tokenizer: OpenClipTokenizer | None = None
) -> PreTrainedModel:
    """Saves a tiny model of a configuration, and its processor; returns the model.

    Captions have 10 tokens by default, which leaves room for prompts.
    """
    model = randomize(MODEL_CLASSES[config.model_type](config))
    if model.can_generate():
        model.generation_config.max_length = 11
    model.save_pretrained(folder)
    build_processor(model, tokenizer).save_pretrained(folder)
    return model
