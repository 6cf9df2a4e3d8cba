"""Configuration of the modern text tower (open_clip 4: `ModernTextTransformer` in `transformer.py`)."""

from .configuration_common import check_choice, strict
from .configuration_modern_layers import ModernLayersConfig


@strict
class ModernTextConfig(ModernLayersConfig):
    r"""Configuration of [`ModernTextModel`], a text transformer with the layers of today's language models.

    Takes the fields of [`ModernLayersConfig`] and these. The defaults are those of open_clip's
    `moderntext-ViT-B-32-256`.

    Args:
        vocab_size: number of token ids.
        max_position_embeddings: longest text in tokens, registers not counted; open_clip: `context_length`.
        projection_dim: width of the embedding shared with the vision tower; open_clip: `embed_dim`.
        proj_type: `"linear"`, or `"none"` for an embedding of width `hidden_size`.
        proj_bias: whether the projection has a bias.
        is_causal: each token sees itself and those before it, else all of the text; open_clip: `attention_mode`.
        use_embedding_norm: a norm between embeddings and encoder; open_clip: `pre_norm`.
        num_register_tokens: learned tokens in front of the text, which are not pooled; open_clip: `reg_tokens`.
        pool_type: `"eos"` (first `eos_token_id`, or the last token of a text without), `"mean"` of the tokens, or
            `"map"` (attention of a learned query to them); padding left out.
        freeze_pad_embedding: padding has an embedding of zeros that is not trained; open_clip: `freeze_pad_embed`.
        pad_token_id: id of padding; open_clip: `pad_id`.
        bos_token_id: id of the start of a text; open_clip: `bos_id`.
        eos_token_id: id of the end of a text; open_clip: `eos_id`.
    """

    model_type = "open_clip_modern_text"
    base_config_key = "text_config"

    vocab_size: int = 50260
    max_position_embeddings: int = 256
    projection_dim: int = 512
    proj_type: str = "linear"
    proj_bias: bool = False
    is_causal: bool = True
    use_embedding_norm: bool = False
    num_register_tokens: int = 0
    pool_type: str = "eos"
    freeze_pad_embedding: bool = True
    pad_token_id: int | None = 50258
    bos_token_id: int | None = 50259
    eos_token_id: int | list[int] | None = 50257

    @property
    def token_dim(self) -> int:
        """Width of the tower's `last_hidden_state`."""
        return self.hidden_size

    def validate_architecture(self):
        super().validate_architecture()
        check_choice(self, "pool_type", ("eos", "mean", "map"))
        check_choice(self, "proj_type", ("linear", "none"))
        if self.pool_type == "eos" and not isinstance(self.eos_token_id, int):
            raise ValueError(f"ModernTextConfig: pool_type='eos' needs one eos_token_id, got {self.eos_token_id}.")
        if self.proj_type == "none" and self.projection_dim != self.hidden_size:
            raise ValueError(
                f"ModernTextConfig: without a projection, projection_dim ({self.projection_dim}) must equal "
                f"hidden_size ({self.hidden_size})."
            )


__all__ = ["ModernTextConfig"]
