"""Configuration of CLIP's ResNet tower (open_clip: `ModifiedResNet` in `modified_resnet.py`)."""

from .configuration_backbones import BackboneTowerConfig
from .configuration_common import height_and_width, strict


@strict
class ModifiedResNetConfig(BackboneTowerConfig):
    r"""Configuration of [`ModifiedResNetModel`], the ResNet of https://arxiv.org/abs/2103.00020.

    Takes the fields of [`BackboneTowerConfig`] and these. The defaults are those of open_clip's `RN50`.

    Args:
        num_channels: channels of `pixel_values`; open_clip always has 3.
        image_size: height and width in pixels, one number for a square; open_clip has squares alone.
        embedding_size: channels behind the stem; open_clip: `width`.
        depths: bottlenecks in each of the four stages; open_clip: `layers`.
        num_attention_heads: heads of the attention pooling, divides `token_dim`; open_clip:
            `width * 32 // head_width`.
        projection_dim: width of the embedding shared with the text tower; open_clip: `embed_dim`.
        attention_dropout: dropout probability of the pooling's attention weights in training, in [0, 1); open_clip
            has none.
        initializer_range: without effect in this tower, whose weights all start from their fan-in, as in open_clip.
    """

    model_type = "open_clip_modified_resnet"
    base_config_key = "vision_config"

    num_channels: int = 3
    image_size: int | list[int] | tuple[int, int] = 224
    embedding_size: int = 64
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    num_attention_heads: int = 32
    projection_dim: int = 1024
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.depths = list(self.depths)
        super().__post_init__(**kwargs)

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels behind each stage."""
        return [self.embedding_size * 4 * 2**stage for stage in range(len(self.depths))]

    @property
    def token_dim(self) -> int:
        """Width of the tower's `last_hidden_state`."""
        return self.hidden_sizes[-1]

    @property
    def num_hidden_layers(self) -> int:
        """Stages, each with one entry in `hidden_states` behind the stem's."""
        return len(self.depths)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the last feature map, 32 times smaller than the image."""
        # The first convolution rounds halves up, the four poolings behind it round down.
        height, width = height_and_width(self.image_size)
        return (height + 1) // 32, (width + 1) // 32

    def validate_architecture(self):
        """Raise `ValueError` where the fields describe a tower that cannot be built."""
        if len(self.depths) != 4:
            raise ValueError(f"ModifiedResNetConfig: depths must be four numbers of bottlenecks, got {self.depths}.")
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(
                f"ModifiedResNetConfig: image_size must be one number or [height, width], got {self.image_size}."
            )
        if 0 in self.grid_size:
            raise ValueError(
                f"ModifiedResNetConfig: image_size must be 32 or more on both sides, got {self.image_size}."
            )
        if self.token_dim % self.num_attention_heads:
            raise ValueError(
                f"ModifiedResNetConfig: 32 * embedding_size ({self.token_dim}) must be a multiple of "
                f"num_attention_heads ({self.num_attention_heads})."
            )


__all__ = ["ModifiedResNetConfig"]
