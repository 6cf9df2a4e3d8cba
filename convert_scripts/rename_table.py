"""How the tensors of a whole open_clip model become ours: its towers' tables, CoCa's decoder and the scalars."""

from transformers.configuration_utils import PreTrainedConfig

from .mapping.state_dict import Rename, Table, under
from .towers.coca_decoder import COCA_DECODER
from .towers.tables import TEXT_CONVERSIONS, VISION_CONVERSIONS


# Keys of a checkpoint that no model needs -> why.
DROPPED = {
    "attn_mask": "causal mask of the text tower, made in forward",
    "text.attn_mask": "causal mask of the text tower, made in forward",
    "text_decoder.attn_mask": "causal mask of the decoder, made in forward",
    "text.transformer.embeddings.position_ids": "buffer of old transformers releases, made in forward",
    "text.transformer.embed_positions.weights": "sinusoidal table of old transformers releases, made anew",
    "input_resolution": "number kept by OpenAI's archives, in the configuration as image_size",
    "context_length": "number kept by OpenAI's archives, in the configuration as max_position_embeddings",
    "vocab_size": "number kept by OpenAI's archives, in the configuration as vocab_size",
}

LOGITS: Table = (Rename("logit_scale", "logit_scale"), Rename("logit_bias", "logit_bias"))


def rename_table(config: PreTrainedConfig, text_prefix: str = "text.") -> Table:
    """Rename table of a whole model.

    Args:
        config: configuration of a dual model or of CoCa.
        text_prefix: where the checkpoint keeps its text tower: `""` in open_clip's `CLIP`, `"text."` in its
            `CustomTextCLIP` and `CoCa`.
    """
    vision, text = config.vision_config, config.text_config
    table = (
        *under("visual.", "vision_model.", VISION_CONVERSIONS[vision.model_type].rename_table(vision)),
        *under(text_prefix, "text_model.", TEXT_CONVERSIONS[text.model_type].rename_table(text)),
        *LOGITS,
    )
    if "multimodal_config" in config.sub_configs:
        table += under("text_decoder.", "", COCA_DECODER)
    return table
