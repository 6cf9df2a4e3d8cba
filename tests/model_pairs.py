"""Pairs of a tiny open_clip model and ours with the same weights, and what tests compare them with.

Weights go through the converter's own configuration mapping and rename tables, so that a test of a pair is also a test
of those.
"""

import torch
from tiny_configs import VOCAB_SIZE, open_clip_model
from transformers import PreTrainedConfig, PreTrainedModel

from open_clip_transformers.convert_scripts.mapping.config import TokenIds, build_config
from open_clip_transformers.convert_scripts.mapping.plan import MODEL_CLASSES, plan_conversion


# The highest id ends a text, as in CLIP's vocabulary: open_clip's `argmax` pooling relies on it.
BOS, EOS, PAD = VOCAB_SIZE - 2, VOCAB_SIZE - 1, 0

# Largest difference in fp32, relative to the largest value of the reference.
BOUND = 2e-5


def model_pair(model_cfg: dict, reference: torch.nn.Module | None = None, **stack_fields):
    """`(reference, ours)` of an open_clip `model_cfg`, in eval mode; `stack_fields` are set in every part of ours."""
    reference = open_clip_model(model_cfg) if reference is None else reference
    return reference, converted(model_cfg, reference, **stack_fields)


def converted(model_cfg: dict, reference: torch.nn.Module, **stack_fields) -> PreTrainedModel:
    """Our model of `model_cfg` with the weights of open_clip's, in eval mode."""
    config = build_config(model_cfg, TokenIds(bos=BOS, eos=EOS, pad=PAD))
    for part in config.sub_configs:
        for name, value in stack_fields.items():
            setattr(getattr(config, part), name, value)
    model = MODEL_CLASSES[config.model_type](config)
    model.load_state_dict(converted_tensors(config, reference.state_dict()))
    return model.eval()


def converted_tensors(config: PreTrainedConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of open_clip under our names: weights, or gradients of them."""
    return dict(plan_conversion(config, tensors).converted())


def relative_difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of `reference`; shapes must be equal."""
    assert ours.shape == reference.shape, f"got {tuple(ours.shape)}, expected {tuple(reference.shape)}"
    assert ours.isfinite().all() and reference.isfinite().all()
    difference = (ours.double() - reference.double()).abs().max()
    return (difference / reference.double().abs().max()).item()


def assert_same_gradients(model: PreTrainedModel, reference: torch.nn.Module):
    """Every parameter has the gradient of open_clip's, up to 1e-4 of the largest in its tensor."""
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    # A rename table wants every tensor of a model; buffers have no gradient.
    expected = converted_tensors(model.config, {**reference.state_dict(), **gradients})
    expected = {name: expected[name] for name, _ in model.named_parameters()}
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in model.named_parameters():
        # Keys' biases have no gradient but rounding: a shift of all keys changes no softmax.
        bound = 1e-4 * max(expected[name].abs().max(), 1e-3 * largest)
        assert (parameter.grad - expected[name]).abs().max() <= bound, name


def random_images(model_cfg: dict, count: int = 3, seed: int = 0) -> torch.Tensor:
    """(count, 3, height, width) of normal noise in the size of the model."""
    size = model_cfg["vision_cfg"]["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def random_texts(lengths: list[int], context_length: int, seed: int = 0) -> torch.Tensor:
    """(texts, context_length) of start, random ids, end and padding; `lengths` count start and end."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), context_length), PAD)
    for row, length in enumerate(lengths):
        ids[row, 0] = BOS
        ids[row, 1 : length - 1] = torch.randint(1, BOS, (length - 2,), generator=generator)
        ids[row, length - 1] = EOS
    return ids
