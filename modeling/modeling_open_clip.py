"""Dual models, their losses and their single-tower heads.

open_clip: `CLIP` and `CustomTextCLIP` in `model.py`, `ClipLoss` and `SigLipLoss` in `loss.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import PreTrainedModel, load_state_dict
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging

from ..configuration.configuration_open_clip import OpenClipConfig, OpenClipSiglipConfig
from .modeling_pretrained import COMPOSITE_KEYS, OpenClipPreTrainedModel, patch_arguments
from .modeling_towers import TEXT_MODELS, VISION_MODELS, build_tower


logger = logging.get_logger(__name__)


def softmax_contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """CLIP's loss (https://arxiv.org/abs/2103.00020): matching pairs on the diagonal, mean of both directions.

    Args:
        logits_per_image: (batch, batch), scaled similarities.
    """
    labels = torch.arange(logits_per_image.shape[0], device=logits_per_image.device)
    return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_image.T, labels)) / 2


def sigmoid_contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """SigLIP's loss (https://arxiv.org/abs/2303.15343): each pair matches or not, sum over pairs per image.

    Args:
        logits_per_image: (batch, batch), scaled and biased similarities.
    """
    signs = 2 * torch.eye(logits_per_image.shape[0], device=logits_per_image.device) - 1
    return -F.logsigmoid(signs * logits_per_image).sum() / logits_per_image.shape[0]


def _warn_of_ranks():
    """Warn once, on the first rank, where pairs of other ranks are missing from the loss."""
    ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    if ranks > 1 and distributed.get_rank() == 0:
        logger.warning_once(
            f"Training on {ranks} ranks with the model's own loss, which compares the pairs of one rank alone: its "
            "gradient is not that of the whole batch. ContrastiveTrainer of open_clip_transformers.training gathers "
            "the embeddings of all ranks."
        )


@dataclass
class OpenClipOutput(ModelOutput):
    """Output of [`OpenClipModel`].

    Args:
        loss: scalar, with `return_loss=True`.
        logits_per_image: (images, texts), cosine similarities scaled by `logit_scale.exp()`, plus `logit_bias`.
        logits_per_text: (texts, images), its transpose.
        text_embeds: (texts, projection_dim), of length 1; `None` without texts.
        image_embeds: (images, projection_dim), of length 1; `None` without images.
        text_model_output: output of the text tower.
        vision_model_output: output of the vision tower.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@dataclass
class OpenClipVisionModelOutput(ModelOutput):
    """Output of [`OpenClipVisionModelWithProjection`].

    Args:
        image_embeds: (images, projection_dim), not normalised.
        last_hidden_state: (images, tokens, token_dim).
        hidden_states: per layer (images, tokens, hidden_size), embeddings first, on request.
        attentions: per layer (images, heads, tokens, tokens), on request.
    """

    image_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class OpenClipTextModelOutput(ModelOutput):
    """Output of [`OpenClipTextModelWithProjection`].

    Args:
        text_embeds: (texts, projection_dim), not normalised.
        last_hidden_state: (texts, length, token_dim).
        hidden_states: per layer (texts, length, hidden_size), embeddings first, on request.
        attentions: per layer (texts, heads, length, length), on request.
    """

    text_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class OpenClipDualModel(OpenClipPreTrainedModel):
    """A vision and a text tower, a temperature and perhaps a bias: what CLIP, SigLIP and CoCa have in common."""

    input_modalities = ("image", "text")
    _contrastive_loss = staticmethod(softmax_contrastive_loss)

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.vision_model = build_tower(config.vision_config, VISION_MODELS)
        self.text_model = build_tower(config.text_config, TEXT_MODELS)
        shape = (1,) if config.nonscalar_logit_scale else ()
        self.logit_scale = nn.Parameter(torch.empty(shape))
        self.logit_bias = None if config.logit_bias_init_value is None else nn.Parameter(torch.empty(shape))

    def initialize(self, std: float):
        init.constant_(self.logit_scale, self.config.logit_scale_init_value)
        if self.logit_bias is not None:
            init.constant_(self.logit_bias, self.config.logit_bias_init_value)

    def reshape_scales(self, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
        """Give `logit_scale` and `logit_bias` the shapes, `()` or `(1,)`, in which `stored` has them.

        Returns:
            The former shapes of those that changed.
        """
        former = {}
        for name, parameter in list(self.named_parameters(recurse=False)):
            value = stored.get(name)
            if value is not None and value.numel() == 1 and value.shape != parameter.shape:
                former[name] = parameter.shape
                reshaped = nn.Parameter(parameter.data.reshape(value.shape), parameter.requires_grad)
                reshaped.__dict__.update(parameter.__dict__)  # transformers marks what it has loaded
                setattr(self, name, reshaped)
        return former

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, **kwargs):
        parts = [load_state_dict(file, "meta") for file in checkpoint_files] if state_dict is None else [state_dict]
        former = [model.reshape_scales(part) for part in parts]
        outputs = PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, **kwargs)
        for shapes in former:
            model.reshape_scales({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        return outputs

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        for name, parameter in self.named_parameters(recurse=False):
            value = state_dict.get(prefix + name)
            if value is not None and value.numel() == 1:
                state_dict[prefix + name] = value.reshape(parameter.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """Resize the vocabulary of the whole model; see [`~transformers.PreTrainedModel.resize_token_embeddings`]."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        # transformers sets that of `get_text_config()`, which is the decoder's in a CoCa.
        self.config.text_config.vocab_size = self.config.get_text_config().vocab_size
        return embeddings

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """The vision tower's output; `pooler_output` (images, projection_dim) is the embedding, not normalised.

        Args:
            pixel_values: (images, channels, height, width), normalised as the image processor does; of a NaFlex tower
                (images, patches, values of a patch).
            interpolate_pos_encoding: accept other image sizes than the model's.
            pixel_attention_mask, spatial_shapes: see [`NaFlexVitModel`], which alone takes them.
        """
        patches = patch_arguments(pixel_attention_mask, spatial_shapes)
        return self.vision_model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **patches,
            **kwargs,
        )

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """The text tower's output; `pooler_output` (texts, projection_dim) is the embedding, not normalised.

        Args:
            input_ids: (texts, length).
            attention_mask: (texts, length), 0 on left padding; padding behind a text follows the tower's own rule.
            position_ids: (texts, length), by default 0, 1, ... from the first token that is no left padding.
        """
        return self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )

    def get_patch_features(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, last_attention: bool = True
    ) -> torch.Tensor:
        """Embed each patch of images in the space that images and texts share, for heat maps of a text.

        An embedding is what the tower's pooling, last layer norm and projection make of the patch as if it were alone.
        With a class token or a mean that is the norm and the projection of the patch, what users of open_clip's
        `forward_intermediates` compute; of attention pooling it is the values, because a single key has all the
        attention, as in MaskCLIP (https://arxiv.org/abs/2112.01071).

        Args:
            pixel_values: (images, channels, height, width), normalised as the image processor does.
            interpolate_pos_encoding: accept other image sizes than the model's.
            last_attention: whether patches attend to each other in the last layer. A tower that pools by its class
                token has not learned to say anything in the patches that come out of that layer: there MaskCLIP's
                `False`, with which each attends to itself alone, follows the image more closely.

        Returns:
            (images, rows, columns, projection_dim), not normalised.

        Raises:
            ValueError: the image size is not the model's, or the tower has no patches that can be embedded.
        """
        if not hasattr(self.vision_model, "get_patch_features"):
            raise ValueError(
                f"Patches of a tower of type {self.config.vision_config.model_type!r} cannot be embedded one by one. "
                "get_image_features embeds whole images."
            )
        return self.vision_model.get_patch_features(pixel_values, interpolate_pos_encoding, last_attention)

    def compute_logits(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """(images, projection_dim) and (texts, projection_dim), both of length 1 -> logits (images, texts)."""
        image_embeds = image_embeds.to(text_embeds.device)
        logits = self.logit_scale.exp().to(text_embeds.device) * image_embeds @ text_embeds.T
        return logits if self.logit_bias is None else logits + self.logit_bias.to(text_embeds.device)

    def contrastive_loss(self, logits_per_image: torch.Tensor) -> torch.Tensor:
        """(batch, batch) logits of matching images and texts -> scalar; `ValueError` if they are not square."""
        images, texts = logits_per_image.shape
        if images != texts:
            raise ValueError(
                f"return_loss=True compares pairs, got {images} images and {texts} texts: pass one text an image."
            )
        if self.training and not torch.compiler.is_compiling():
            _warn_of_ranks()
        return self._contrastive_loss(logits_per_image)


class OpenClipModel(OpenClipDualModel):
    """CLIP (https://arxiv.org/abs/2103.00020), with open_clip's towers."""

    config: OpenClipConfig

    def __init__(self, config: OpenClipConfig):
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        interpolate_pos_encoding: bool = False,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> OpenClipOutput:
        """Compare images with texts, or embed one kind of them, which leaves out what belongs to the other.

        Args:
            input_ids: (texts, length).
            pixel_values: (images, channels, height, width), normalised as the image processor does; of a NaFlex tower
                (images, patches, values of a patch).
            attention_mask: (texts, length), 0 on left padding; padding behind a text follows the tower's own rule.
            position_ids: (texts, length), by default 0, 1, ... from the first token that is no left padding.
            return_loss: compute the contrastive loss; images and texts must then be pairs.
            interpolate_pos_encoding: accept other image sizes than the model's.
            pixel_attention_mask, spatial_shapes: see [`NaFlexVitModel`], which alone takes them.

        Returns:
            [`OpenClipOutput`].

        Raises:
            ValueError: neither images nor texts, the image size is not the model's, a text is too long, or
                `return_loss` with unequal counts.
        """
        self.check_kwargs(kwargs)
        if pixel_values is None and input_ids is None:
            raise ValueError(f"{type(self).__name__} needs pixel_values, input_ids or both, got neither.")
        vision_outputs = text_outputs = image_embeds = text_embeds = logits_per_image = None
        if pixel_values is not None:
            vision_outputs = self.get_image_features(
                pixel_values,
                interpolate_pos_encoding,
                pixel_attention_mask,
                spatial_shapes,
                return_dict=True,
                **kwargs,
            )
            image_embeds = F.normalize(vision_outputs.pooler_output, dim=-1)
        if input_ids is not None:
            text_outputs = self.get_text_features(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
            text_embeds = F.normalize(text_outputs.pooler_output, dim=-1)
        if image_embeds is not None and text_embeds is not None:
            logits_per_image = self.compute_logits(image_embeds, text_embeds)
        elif return_loss:
            raise ValueError("return_loss=True compares embeddings: pass pixel_values and input_ids.")
        return OpenClipOutput(
            loss=self.contrastive_loss(logits_per_image) if return_loss else None,
            logits_per_image=logits_per_image,
            logits_per_text=None if logits_per_image is None else logits_per_image.transpose(0, -1),
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )


class OpenClipSiglipModel(OpenClipModel):
    """SigLIP (https://arxiv.org/abs/2303.15343): the dual model with a bias and the sigmoid loss."""

    config: OpenClipSiglipConfig
    _contrastive_loss = staticmethod(sigmoid_contrastive_loss)


class OpenClipVisionModelWithProjection(OpenClipPreTrainedModel):
    """The vision tower alone, loadable from a dual model's folder."""

    config: OpenClipConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", *COMPOSITE_KEYS]

    def __init__(self, config: OpenClipConfig):
        super().__init__(config)
        self.vision_model = build_tower(config.vision_config, VISION_MODELS)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> OpenClipVisionModelOutput:
        """(images, channels, height, width), or what [`NaFlexVitModel`] takes -> [`OpenClipVisionModelOutput`]."""
        self.check_kwargs(kwargs)
        patches = patch_arguments(pixel_attention_mask, spatial_shapes)
        outputs = self.vision_model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **patches,
            **kwargs,
        )
        return OpenClipVisionModelOutput(
            image_embeds=outputs.pooler_output,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class OpenClipTextModelWithProjection(OpenClipPreTrainedModel):
    """The text tower alone, loadable from a dual model's folder."""

    config: OpenClipConfig
    input_modalities = ("text",)
    _keys_to_ignore_on_load_unexpected = [r"^vision_model\.", *COMPOSITE_KEYS]

    def __init__(self, config: OpenClipConfig):
        super().__init__(config)
        self.text_model = build_tower(config.text_config, TEXT_MODELS)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> OpenClipTextModelOutput:
        """(texts, length) of ids -> [`OpenClipTextModelOutput`]."""
        self.check_kwargs(kwargs)
        outputs = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, return_dict=True, **kwargs
        )
        return OpenClipTextModelOutput(
            text_embeds=outputs.pooler_output,
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class OpenClipForImageClassification(OpenClipPreTrainedModel):
    """The vision tower with a linear classifier on its embedding."""

    config: OpenClipConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _keys_to_ignore_on_load_unexpected = OpenClipVisionModelWithProjection._keys_to_ignore_on_load_unexpected

    def __init__(self, config: OpenClipConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vision_model = build_tower(config.vision_config, VISION_MODELS)
        self.classifier = nn.Linear(config.projection_dim, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_model.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (images, channels, height, width), normalised as the image processor does.
            labels: (images,) of class ids, or targets as `config.problem_type` asks for; gives the `loss`.
            interpolate_pos_encoding: accept other image sizes than the model's.
            pixel_attention_mask, spatial_shapes: see [`NaFlexVitModel`], which alone takes them.

        Returns:
            `logits` (images, num_labels), and on request `hidden_states` and `attentions`.
        """
        self.check_kwargs(kwargs)
        patches = patch_arguments(pixel_attention_mask, spatial_shapes)
        outputs = self.vision_model(
            pixel_values=pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            return_dict=True,
            **patches,
            **kwargs,
        )
        logits = self.classifier(outputs.pooler_output)
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class OpenClipSiglipForImageClassification(OpenClipForImageClassification):
    """The vision tower of a SigLIP with a linear classifier on its embedding."""

    config: OpenClipSiglipConfig


__all__ = [
    "OpenClipForImageClassification",
    "OpenClipModel",
    "OpenClipSiglipForImageClassification",
    "OpenClipSiglipModel",
    "OpenClipTextModelWithProjection",
    "OpenClipVisionModelWithProjection",
]
