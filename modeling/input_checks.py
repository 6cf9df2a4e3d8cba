"""What towers say about images and texts that they do not take."""

import torch

from ..configuration.configuration_common import height_and_width


def check_pixel_values(
    pixel_values: torch.Tensor, num_channels: int, image_size: int | list[int] | tuple[int, int], any_size: bool
):
    """Raises `ValueError` unless `pixel_values` are (batch, num_channels, height, width) of `image_size`.

    Args:
        pixel_values: what a model was given.
        num_channels: what it takes.
        image_size: height and width in pixels, one number for a square.
        any_size: accept any height and width.
    """
    shape, image_size = tuple(pixel_values.shape), height_and_width(image_size)
    if len(shape) != 4 or shape[1] != num_channels:
        raise ValueError(f"pixel_values have shape {shape}, the model expects (batch, {num_channels}, height, width).")
    if shape[0] == 0:
        raise ValueError(f"pixel_values have shape {shape}, the model expects one image at least.")
    if shape[2:] != image_size and not any_size:
        raise ValueError(
            f"pixel_values have height and width {shape[2:]}, the model expects {image_size}: use the image processor "
            "saved with the model, or pass interpolate_pos_encoding=True."
        )


def check_input_ids(input_ids: torch.Tensor, max_position_embeddings: int):
    """Raises `ValueError` unless `input_ids` are (batch, length), of at most `max_position_embeddings` tokens."""
    shape = tuple(input_ids.shape)
    if len(shape) != 2:
        raise ValueError(f"input_ids have shape {shape}, the model expects (batch, length).")
    if 0 in shape:
        raise ValueError(f"input_ids have shape {shape}, the model expects one text at least, of one token at least.")
    if shape[1] > max_position_embeddings:
        raise ValueError(
            f"input_ids have length {shape[1]}, the model takes at most {max_position_embeddings} tokens: truncate "
            "the text."
        )
