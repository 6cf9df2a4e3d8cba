"""Configuration of MaMMUT's text tower (open_clip: `MultimodalTransformer` of LAION's `open_clip_mammut`)."""

from typing import ClassVar

from .configuration_common import check_layers, strict
from .configuration_text import OpenClipTextConfig


@strict
class MaMMUTTextConfig(OpenClipTextConfig):
    r"""Configuration of [`MaMMUTTextModel`], the text tower of https://arxiv.org/abs/2303.16839.

    Takes the fields of [`OpenClipTextConfig`] but for the class token, and these. It embeds texts without causality;
    beside it, [`MaMMUTModel`] captions with the same layers.

    Args:
        pool_type: `"avg_all"`, the mean over all positions, padding included, as the released weights have it; or
            `"avg"`, that over the text alone, as in open_clip 4.
        attention_only_layers: indices of layers without an MLP; open_clip: those before a cross-attention where
            `has_mlp` is false.
    """

    model_type = "open_clip_mammut_text"
    pool_types: ClassVar[tuple[str, ...]] = ("avg", "avg_all")

    is_causal: bool = False
    proj_type: str = "none"
    pool_type: str = "avg_all"
    attention_only_layers: list[int] | tuple[int, ...] = ()

    def __post_init__(self, **kwargs):
        self.attention_only_layers = list(self.attention_only_layers)  # as a file has them
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        super().validate_architecture()
        if self.is_causal or self.embed_cls:
            raise ValueError(
                "MaMMUTTextConfig: this tower embeds a text by all of its tokens, each of which sees all others: "
                f"is_causal and embed_cls must be false, got {self.is_causal} and {self.embed_cls}."
            )
        if self.pool_type == "avg" and self.pad_token_id is None:
            raise ValueError("MaMMUTTextConfig: pool_type='avg' leaves out padding, and needs a pad_token_id.")
        check_layers(self, "attention_only_layers", self.num_hidden_layers)
        options = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")
        if given := [name for name in options if getattr(self, name)]:
            raise ValueError(f"MaMMUTTextConfig: the layers of this tower have no {', '.join(given)}; leave them out.")


__all__ = ["MaMMUTTextConfig"]
