"""Configuration of the towers that timm builds (open_clip: `TimmModel` in `timm_model.py`)."""

import re

from .configuration_common import OpenClipPreTrainedConfig, check_choice, check_range, strict


# Arguments of timm's models that a configuration may set: sizes, rates and switches of the architecture. None of them
# names a file, an address or code.
MODEL_ARGS = frozenset(
    {
        "attn_drop_rate",
        "class_token",
        "depth",
        "depths",
        "dims",
        "drop_path_rate",
        "drop_rate",
        "dynamic_img_pad",
        "dynamic_img_size",
        "embed_dim",
        "embed_dims",
        "head_dim",
        "img_size",
        "init_values",
        "layers",
        "ls_init_value",
        "mlp_ratio",
        "mlp_ratios",
        "no_embed_class",
        "num_heads",
        "output_stride",
        "patch_drop_rate",
        "patch_size",
        "pos_drop_rate",
        "proj_drop_rate",
        "qk_norm",
        "qkv_bias",
        "ref_feat_shape",
        "reg_tokens",
        "strict_img_size",
        "window_size",
    }
)
POOLERS = ("abs_attn", "rot_attn")


@strict
class TimmVisionConfig(OpenClipPreTrainedConfig):
    r"""Configuration of [`TimmVisionModel`], an image model of timm with open_clip's pooling and projection.

    The defaults are those of open_clip's `convnext_base`. Everything that the model is built from is here; nothing is
    ever downloaded.

    Args:
        architecture: timm's name of the model, without weights; open_clip: `timm_model_name`.
        model_args: arguments of timm's model that differ from its own, of those in `MODEL_ARGS`: numbers, booleans and
            lists of them; open_clip: `timm_drop_path` is `drop_path_rate`, `patch_dropout` is `patch_drop_rate`.
        hidden_size: channels of the features that timm's model computes before pooling; timm: `num_features`.
        image_size: height and width of the images in pixels, one number for a square.
        input_size: size that timm's model is set to after it is built, in pixels, `None` for its own; open_clip:
            `set_input_size`, called for `force_image_size`.
        projection_dim: width of the embedding shared with the text tower; open_clip: `embed_dim`.
        pool_type: timm's name of the pooling, such as `"avg"`, `"token"` or `"map"`; `"abs_attn"` or `"rot_attn"` for
            attention pooling over the feature map; `""` for the model's own; open_clip: `timm_pool`.
        proj_type: `"linear"` or `"mlp"`; `None` for timm's own classifier layer, or for what the attention pooling
            projects to; `"none"` for no projection; open_clip: `timm_proj`.
        proj_bias: bias of the projection's last layer; open_clip: `timm_proj_bias`.
        proj_dropout: dropout probability before a linear projection or inside the MLP, in [0, 1); open_clip:
            `timm_drop`.
        reparameterized: the branches of the training form are fused for inference, as timm's `reparameterize_model`
            does.
        initializer_range: standard deviation of new weights of the projection; timm initialises its own layers.
    """

    model_type = "open_clip_timm_vision"
    base_config_key = "vision_config"

    architecture: str = "convnext_base"
    model_args: dict | None = None
    hidden_size: int = 1024
    image_size: int | list[int] | tuple[int, int] = 224
    input_size: int | list[int] | tuple[int, int] | None = None
    projection_dim: int = 512
    pool_type: str | None = ""
    proj_type: str | None = "linear"
    proj_bias: bool = False
    proj_dropout: float | int = 0.0
    reparameterized: bool = False
    initializer_range: float = 0.02

    @property
    def token_dim(self) -> int:
        """Width of the tower's `last_hidden_state`."""
        return self.hidden_size

    def validate_architecture(self):
        """Raise `ValueError` where the fields describe a tower that cannot be built, or that is not one of timm's."""
        check_choice(self, "proj_type", ("linear", "mlp", "none", None))
        if not re.fullmatch(r"\w+(\.\w+)?", self.architecture, re.ASCII):
            raise ValueError(
                f"TimmVisionConfig: architecture must be the name of a model that timm knows, such as "
                f"'convnext_base', got {self.architecture!r}: addresses and folders are refused."
            )
        for name, value in (self.model_args or {}).items():
            if name not in MODEL_ARGS:
                raise ValueError(
                    f"TimmVisionConfig: model_args may hold {', '.join(sorted(MODEL_ARGS))}, got {name!r}."
                )
            values = value if isinstance(value, list | tuple) else [value]
            if not all(isinstance(number, int | float | None) for number in values):
                raise ValueError(
                    f"TimmVisionConfig: model_args[{name!r}] must be a number, a boolean or a list of them, got "
                    f"{value!r}."
                )
            check_range("TimmVisionConfig: model_args", name, value)
        for name in ("image_size", "input_size"):
            size = getattr(self, name)
            if size is None:
                continue
            if not isinstance(size, int) and len(size) != 2:
                raise ValueError(f"TimmVisionConfig: {name} must be one number or [height, width], got {size}.")


__all__ = ["TimmVisionConfig"]
