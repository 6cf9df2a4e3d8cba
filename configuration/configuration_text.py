"""Configuration of the text transformer tower (open_clip: `TextTransformer` in `transformer.py`)."""

from typing import ClassVar

from .configuration_common import OpenClipTowerConfig, check_choice, strict


@strict
class OpenClipTextConfig(OpenClipTowerConfig):
    r"""Configuration of [`OpenClipTextModel`], the text transformer of https://arxiv.org/abs/2103.00020.

    Takes the fields of [`OpenClipTowerConfig`] and these. The defaults are those of open_clip's `ViT-B-32`.

    Args:
        vocab_size: number of token ids.
        max_position_embeddings: longest text in tokens, an appended class token not counted; open_clip:
            `context_length`.
        projection_dim: width of the embedding shared with the vision tower; open_clip: `embed_dim`.
        proj_type: `"linear"`, or `"none"` for an embedding of width `hidden_size`.
        proj_bias: whether the projection has a bias.
        is_causal: each token sees itself and those before it; open_clip: `not no_causal_mask`.
        use_pad_mask: padding is hidden from the other tokens; as in open_clip, without effect while `is_causal`.
        embed_cls: append a learned class token to the text and pool there (CoCa); padding is then always hidden.
        correct_cls_mask: `False` reproduces the padding mask of the released CoCa weights, which is shifted by one
            token; `True` gives the corrected mask. Only read with `embed_cls`.
        pool_type: without `embed_cls`, the token that represents the text: `"argmax"` (highest id, the end of text in
            CLIP's vocabulary; `resize_token_embeddings` makes it `"eos"` where it adds tokens behind that, whose ids
            are higher), `"eos"` (first `eos_token_id`), `"first"`, `"last"` or `"none"` (all tokens).
        pad_token_id: id of padding; open_clip: `pad_id`.
        bos_token_id: id of the start of a text.
        eos_token_id: id of the end of a text; open_clip: `eos_id`, read there only with `pool_type="eos"`.
    """

    model_type = "open_clip_text"
    base_config_key = "text_config"
    pool_types: ClassVar[tuple[str, ...]] = ("argmax", "eos", "first", "last", "none")

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    projection_dim: int = 512
    proj_type: str = "linear"
    proj_bias: bool = False
    is_causal: bool = True
    use_pad_mask: bool = False
    embed_cls: bool = False
    correct_cls_mask: bool = False
    pool_type: str = "argmax"
    pad_token_id: int | None = 0
    bos_token_id: int | None = 49406
    eos_token_id: int | list[int] | None = 49407

    @property
    def token_dim(self) -> int:
        """Width of the tower's `last_hidden_state`."""
        return self.hidden_size

    def validate_architecture(self):
        super().validate_architecture()
        owner = type(self).__name__
        check_choice(self, "proj_type", ("linear", "none"))
        check_choice(self, "pool_type", self.pool_types)
        if self.pad_token_id is None and (self.embed_cls or (self.use_pad_mask and not self.is_causal)):
            raise ValueError(f"{owner}: embed_cls and use_pad_mask need a pad_token_id, got None.")
        if self.pool_type == "eos" and not self.embed_cls and not isinstance(self.eos_token_id, int):
            raise ValueError(f"{owner}: pool_type='eos' needs one eos_token_id, got {self.eos_token_id}.")
        if self.proj_type == "none" and self.projection_dim != self.hidden_size:
            raise ValueError(
                f"{owner}: without a projection, projection_dim ({self.projection_dim}) must equal "
                f"hidden_size ({self.hidden_size})."
            )


__all__ = ["OpenClipTextConfig"]
