"""The end-of-text id and the check of lengths of all captioners, for every environment."""

import torch


EOS = 49407


def captions(sequences: torch.Tensor, settings: dict) -> list | None:
    """Return token ids to compare, or None where they are drawn at random.

    Raises:
        ValueError: a caption is not as long as the cell demands, so that times cannot be compared.
    """
    if sequences.shape != (settings["batch"], settings["length"]):
        raise ValueError(f"Captions have shape {tuple(sequences.shape)}, not {settings['length']} tokens each.")
    return None if settings["strategy"] == "top_p" else sequences.tolist()
