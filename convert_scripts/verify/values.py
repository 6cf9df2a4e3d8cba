"""Values of a model of either library on fixed inputs: outputs, losses, gradients, intermediates, captions.

Both libraries' values have the same names. Losses follow open_clip's `loss.py`; models are in eval mode, also for
gradients: nothing is dropped out, and batch norms use their running statistics. Intermediates come in the order in
which they are computed: a wrong layer is the first name at which two models differ.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from ...configuration.configuration_common import height_and_width
from ...modeling.modeling_naflex_vit import patchify
from ..mapping.plan import rename_table
from ..mapping.state_dict import compile_pattern, fill_pattern, resolve
from ..processors.image import takes_patches
from ..towers.base import Intermediate
from ..towers.tables import DECODER_CONVERSIONS, TEXT_CONVERSIONS, VISION_CONVERSIONS
from .reference import is_mammut, mammut_caption_logits, text_prefix


Outputs = dict[str, torch.Tensor]
Losses = dict[str, torch.Tensor]
# What a vision tower takes by name, `pixel_values` and perhaps more, and `input_ids` of as many texts as images.
Images = dict[str, torch.Tensor]
Inputs = tuple[Images, torch.Tensor]
Record = Callable[[str, torch.Tensor], None]

IGNORED = -100
# Longest caption that is compared, in tokens: each costs open_clip a pass over all tokens before it.
MAX_LENGTH = 20
# In place of an id, behind the end of a text.
NOTHING = -1


def verification_inputs(config: PreTrainedConfig, pairs: int = 2) -> Inputs:
    """Make fixed inputs for a model: images, and `input_ids` (pairs, text length).

    Images are noise, from the coarsest to the finest: noise of one kind is all alike to a model. They are
    `pixel_values` (pairs, 3, height, width); of a NaFlex tower patches of images of several shapes, with padding
    behind all but the first. The first text is as long as the model takes, the last half as long and the others in
    between, so that padding is in the picture.
    """
    generator = torch.Generator().manual_seed(0)
    text = config.text_config
    images = (_patches if takes_patches(config) else _pixels)(config.vision_config, pairs, generator)
    # CoCa's decoder may take shorter texts than its text tower, and know fewer words.
    length = getattr(config, "max_position_embeddings", text.max_position_embeddings)
    vocab_size = min(getattr(config, "vocab_size", text.vocab_size), text.vocab_size)
    end = text.eos_token_id if getattr(text, "pool_type", None) == "eos" else vocab_size - 1
    padding = 0 if text.pad_token_id is None else text.pad_token_id
    words = [token for token in range(vocab_size) if token not in (end, padding)]
    input_ids = torch.tensor(words)[torch.randint(len(words), (pairs, length), generator=generator)]
    for row, last in zip(input_ids, torch.linspace(length - 1, length // 2, pairs).long()):
        row[last] = end
        row[last + 1 :] = padding
    return images, input_ids


def _pixels(config: PreTrainedConfig, pairs: int, generator: torch.Generator) -> Images:
    size = height_and_width(config.image_size)
    grids = [*((2 << i, 2 << i) for i in range(pairs - 1)), size]
    noise = [torch.randn(1, 3, *grid, generator=generator) for grid in grids]
    return {"pixel_values": torch.cat([F.interpolate(image, size, mode="bilinear") for image in noise])}


# Rows by which the columns of patches are multiplied, in the shapes of images to verify with.
_ASPECTS = (1.0, 0.4, 2.3)


def _patches(config: PreTrainedConfig, pairs: int, generator: torch.Generator) -> Images:
    height, width = height_and_width(config.patch_size)
    # As many as fill the table of positions, or the budget where that is smaller: more cost time and show nothing.
    length = min(config.max_num_patches, math.prod(height_and_width(config.position_grid_size)))
    shapes = []
    for index in range(pairs):
        rows = min(length, max(1, round((length * _ASPECTS[index % len(_ASPECTS)]) ** 0.5)))
        shapes.append((rows, max(1, length // rows - index)))
    length = max(math.prod(shape) for shape in shapes)
    patches = torch.zeros(pairs, length, height * width * config.num_channels)
    for index, (row, (rows, columns)) in enumerate(zip(patches, shapes)):
        coarse = torch.randn(1, config.num_channels, 2 << index, 2 << index, generator=generator)
        image = F.interpolate(coarse, (rows * height, columns * width), mode="bilinear")
        row[: rows * columns] = patchify(image, (height, width))[0]
    spatial_shapes = torch.tensor(shapes)
    mask = (torch.arange(length) < spatial_shapes.prod(-1, keepdim=True)).int()
    return {"pixel_values": patches, "pixel_attention_mask": mask, "spatial_shapes": spatial_shapes}


def first_and_last(inputs: Inputs) -> Inputs:
    """The first and the last of images and texts."""
    images, input_ids = inputs
    step = len(input_ids) - 1
    return {name: tensor[::step] for name, tensor in images.items()}, input_ids[::step]


def without_padding(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Tokens of images (images, tokens, size) with zeros for padding, where the libraries have any values; others as
    they are.

    Args:
        tokens: class and register tokens, if there are any, and as many patches as `mask` has.
        mask: (images, patches), 0 on padding.
    """
    prefix = tokens.shape[1] - mask.shape[1] if tokens.ndim == 3 and len(tokens) == len(mask) else -1
    if prefix < 0:
        return tokens
    return tokens * F.pad(mask, (prefix, 0), value=1).unsqueeze(-1).to(tokens)


def open_clip_images(images: Images, dtype: torch.dtype) -> torch.Tensor | dict[str, torch.Tensor]:
    """Images as open_clip's model takes them, in its dtype."""
    pixel_values = images["pixel_values"].to(dtype)
    if "spatial_shapes" not in images:
        return pixel_values
    mask, place = images["pixel_attention_mask"].bool(), torch.arange(pixel_values.shape[1])
    columns = images["spatial_shapes"][:, 1:]
    # timm finds the size of each image in the coordinates of its patches: those of padding are zeros.
    coordinates = torch.stack([place // columns, place % columns], dim=-1) * mask.unsqueeze(-1)
    return {"patches": pixel_values, "patch_coord": coordinates, "patch_valid": mask}


def open_clip_outputs(model: torch.nn.Module, inputs: Inputs) -> Outputs:
    """Outputs of open_clip's model, in its dtype.

    Raises:
        Exception: open_clip cannot run it.
    """
    images, input_ids = inputs
    pixel_values = open_clip_images(images, model.logit_scale.dtype)
    if hasattr(model, "text_decoder"):
        (image_features, image_tokens), (text_features, text_tokens) = (
            model.visual(pixel_values),
            model.text(input_ids),
        )
        outputs = {
            "image features": image_features,
            "text features": text_features,
            "caption logits": model.text_decoder(image_tokens, text_tokens),
        }
    elif is_mammut(model):
        outputs = {
            "image features": model.encode_image(pixel_values, normalize=False),
            "text features": model.encode_text(input_ids, normalize=False),
            "caption logits": mammut_caption_logits(model, pixel_values, input_ids),
        }
    else:
        outputs = {"image features": model.encode_image(pixel_values), "text features": model.encode_text(input_ids)}
    if getattr(model.visual, "attn_pool_contrastive", None) is not None:
        # open_clip keeps the axis of the one contrastive query.
        outputs["image features"] = outputs["image features"].squeeze(1)
    if is_comparable(outputs):
        image, text = (F.normalize(outputs[name], dim=-1) for name in ("image features", "text features"))
        logits = model.logit_scale.exp() * image @ text.T
        outputs["logits"] = logits if model.logit_bias is None else logits + model.logit_bias
    return outputs


def our_outputs(model: PreTrainedModel, inputs: Inputs) -> Outputs:
    """Outputs of a converted model, in its dtype."""
    images, input_ids = inputs
    vision_outputs = model.get_image_features(**images)
    outputs = {
        "image features": vision_outputs.pooler_output,
        "text features": model.get_text_features(input_ids).pooler_output,
    }
    if hasattr(model, "lm_head"):
        outputs["caption logits"] = model(input_ids, image_hidden_states=vision_outputs.last_hidden_state).logits
    if is_comparable(outputs):
        image, text = (F.normalize(outputs[name], dim=-1) for name in ("image features", "text features"))
        outputs["logits"] = model.compute_logits(image, text)
    return outputs


def native_outputs(model: PreTrainedModel, inputs: Inputs) -> Outputs:
    """Outputs of a dual model of transformers, or of a single tower, under the names of `our_outputs`."""
    images, input_ids = inputs
    if hasattr(model, "get_image_features"):
        return {
            "image features": model.get_image_features(**images).pooler_output,
            "text features": model.get_text_features(input_ids).pooler_output,
            "logits": model(input_ids=input_ids, **images).logits_per_image,
        }
    if model.main_input_name == "pixel_values":
        outputs = model(**images)
        return {"image features": _embedding(outputs, "image_embeds")}
    outputs = model(input_ids=input_ids)
    return {"text features": _embedding(outputs, "text_embeds")}


def _embedding(outputs: ModelOutput, name: str) -> torch.Tensor:
    """The projected vectors: classes "with projection" have a field of their own for them."""
    return outputs[name] if name in outputs else outputs.pooler_output  # noqa: SIM401  not every output has both


def is_comparable(outputs: Outputs) -> bool:
    """Whether images and texts have one vector each; with `pool_type="none"` they have one for each token."""
    return outputs["image features"].ndim == outputs["text features"].ndim == 2


def open_clip_losses(model: torch.nn.Module, inputs: Inputs, config: PreTrainedConfig) -> Losses:
    """Losses of open_clip's model, the last of which is the one to train on.

    Args:
        model: open_clip's model.
        inputs: images and their texts.
        config: our configuration of the model, which knows a captioner's weights of the losses and its padding.
    """
    from open_clip.loss import ClipLoss, CoCaLoss, SigLipLoss

    images, input_ids = inputs
    pixel_values = open_clip_images(images, model.logit_scale.dtype)
    is_coca, captions = hasattr(model, "text_decoder"), None
    if is_coca:
        outputs = model(pixel_values, input_ids)
        image, text = outputs["image_features"], outputs["text_features"]
        captions = outputs["logits"], outputs.get("labels")
        if captions[1] is None:  # open_clip 4 shifts them outside of its model
            captions = outputs["logits"][:, :-1], input_ids[:, 1:]
    else:
        image, text = model.encode_image(pixel_values, normalize=True), model.encode_text(input_ids, normalize=True)
        if is_mammut(model):
            captions = mammut_caption_logits(model, pixel_values, input_ids)[:, :-1], input_ids[:, 1:]
    if getattr(model.visual, "attn_pool_contrastive", None) is not None:
        image = image.squeeze(1)  # open_clip keeps the axis of the one contrastive query
    contrastive_loss = ClipLoss() if captions is not None or model.logit_bias is None else SigLipLoss()
    losses = {"contrastive loss": contrastive_loss(image, text, model.logit_scale.exp(), model.logit_bias)}
    if captions is not None:
        # Its contrastive part, switched off here, takes no bias.
        caption_loss = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=0.0, pad_id=config.pad_token_id)
        losses["caption loss"] = caption_loss(image, text, *captions, None)[1]
        weights = (config.contrastive_loss_weight, config.caption_loss_weight)
        losses["loss"] = sum(weight * loss for weight, loss in zip(weights, losses.values()))
    return losses


def our_losses(model: PreTrainedModel, inputs: Inputs) -> Losses:
    """Losses of a converted model, under the same names."""
    images, input_ids = inputs
    if not hasattr(model, "lm_head"):
        return {"contrastive loss": model(input_ids, return_loss=True, **images).loss}
    labels = input_ids.masked_fill(input_ids == model.config.pad_token_id, IGNORED)
    outputs = model(input_ids, labels=labels, return_loss=True, **images)
    return {
        "contrastive loss": model.contrastive_loss(outputs.logits_per_image),
        "caption loss": F.cross_entropy(outputs.logits[:, :-1].mT, labels[:, 1:], ignore_index=IGNORED),
        "loss": outputs.loss,
    }


def open_clip_gradients(model: torch.nn.Module, config: PreTrainedConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Gradients of open_clip's model under our names, or under open_clip's own where we have none."""
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    steps, unmatched = resolve(gradients, rename_table(config, text_prefix(model)), "sources")
    for step in steps:
        if all(name in gradients for name in step.sources):
            yield from step.apply(gradients)
    for name in unmatched:
        yield name, gradients[name]


def our_gradients(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Gradients of a converted model."""
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            yield name, weight.grad


def intermediates_table(config: PreTrainedConfig, text_prefix: str) -> tuple[Intermediate, ...]:
    """List the values inside a whole model that both libraries compute.

    Args:
        config: configuration of a dual model or of a captioner.
        text_prefix: where open_clip's model keeps its text tower, as for `rename_table`.
    """
    vision, text = config.vision_config, config.text_config
    parts = [
        ("vision", VISION_CONVERSIONS[vision.model_type].intermediates, "vision_model.", "visual."),
        ("text", TEXT_CONVERSIONS[text.model_type].intermediates, "text_model.", text_prefix),
    ]
    if "multimodal_config" in config.sub_configs:
        decoder = DECODER_CONVERSIONS[config.multimodal_config.model_type]
        inside = decoder.intermediates(config.multimodal_config)
        parts.append(("decoder", inside, "multimodal_decoder.", decoder.prefix))
    return tuple(row.under(part, ours, theirs) for part, table, ours, theirs in parts for row in table)


@contextmanager
def recorded(
    model: torch.nn.Module, table: tuple[Intermediate, ...], side: Literal["ours", "theirs"], record: Record
) -> Iterator[None]:
    """Hand the intermediates of every forward pass of `model` to `record(name, value)`, once each and in order.

    The model may overwrite the value: `record` must copy it to keep it.
    """
    seen = set()

    def record_once(name: str, value: Any):
        tensor = _first_tensor(value)
        if tensor is not None and name not in seen:
            seen.add(name)
            record(name, tensor.detach())

    with ExitStack() as hooks:
        for row in table:
            pattern = compile_pattern(getattr(row, side))
            for path, module in model.named_modules():
                if match := pattern.fullmatch(path):
                    name = fill_pattern(row.name, match.groupdict())
                    hooks.callback(_add_hook(module, row.is_input, name, record_once).remove)
        yield


def _add_hook(module: torch.nn.Module, is_input: bool, name: str, record: Callable[[str, Any], None]):
    if is_input:
        return module.register_forward_pre_hook(lambda module, args: record(name, args))
    return module.register_forward_hook(lambda module, args, output: record(name, output))


def _first_tensor(value: Any) -> torch.Tensor | None:
    """The value itself, or the first tensor of a tuple or of an output object."""
    if isinstance(value, ModelOutput):
        value = value.to_tuple()
    if isinstance(value, tuple | list):
        return next((tensor for part in value if (tensor := _first_tensor(part)) is not None), None)
    return value if isinstance(value, torch.Tensor) else None


@dataclass(frozen=True)
class CaptionIds:
    """Special tokens and length of captions.

    Args:
        start: id of the first token.
        end: id of the last, `None` where it is not known.
        max_length: longest caption that the model takes, in tokens.
    """

    start: int
    end: int | None
    max_length: int

    @classmethod
    def of(cls, config: PreTrainedConfig, default: PreTrainedConfig | None = None) -> "CaptionIds":
        """Take the ids of our configuration, or of another one where it does not know them."""
        start, end = (
            getattr(default, name, None) if getattr(config, name) is None else getattr(config, name)
            for name in ("bos_token_id", "eos_token_id")
        )
        # Any first token will do, as long as it is the same.
        return cls(1 if start is None else start, end, min(MAX_LENGTH, config.max_position_embeddings))

    def first(self, images: int) -> torch.Tensor:
        return torch.full((images, 1), self.start)

    def is_end(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids == (NOTHING if self.end is None else self.end)

    def finished(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(images, length) -> (images, max_length), with `NOTHING` behind the end of each text."""
        is_end = self.is_end(input_ids)
        input_ids = input_ids.masked_fill(is_end.cumsum(1) > is_end.int(), NOTHING)
        return F.pad(input_ids, (0, self.max_length - input_ids.shape[1]), value=NOTHING)


@torch.no_grad()
def open_clip_captions(model: torch.nn.Module, pixel_values: torch.Tensor, ids: CaptionIds) -> torch.Tensor:
    """Greedy captions of open_clip's model, (images, max_length), `NOTHING` behind their end.

    Its own `generate` needs transformers older than 5. The loop here takes the most probable word of its decoder until
    the text ends: greedy decoding.
    """
    image_tokens = None if is_mammut(model) else model.visual(pixel_values)[1]
    input_ids = ids.first(len(pixel_values))
    while input_ids.shape[1] < ids.max_length and not ids.is_end(input_ids).any(dim=1).all():
        if image_tokens is None:
            # Texts begin at the same argument in both forms, image features do not.
            logits = mammut_caption_logits(model, pixel_values, input_ids)
        else:
            logits = model.text_decoder(image_tokens, model.text(input_ids)[1])
        input_ids = torch.cat([input_ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids.finished(input_ids)


def our_captions(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Greedy captions of a converted model, in the same form."""
    ids = CaptionIds.of(model.config)
    input_ids = model.generate(
        pixel_values=pixel_values,
        input_ids=ids.first(len(pixel_values)),
        max_length=ids.max_length,
        num_beams=1,
        do_sample=False,
    )
    return ids.finished(input_ids)
