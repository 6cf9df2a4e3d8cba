"""A single tower, of images or of texts, and its tab: how alike two of them are."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ..cli.load import pick_device
from ..configuration.configuration_towers import TEXT_CONFIGS, VISION_CONFIGS
from ..configuration.errors import UserError
from ..convert_scripts.common import failing_as
from ..training.embeddings import token_counts
from .parts import MAX_LETTERS, given, image_input, on_model, sentences, warn


if TYPE_CHECKING:
    import gradio as gr
else:
    from .parts import gr

# Model types of towers -> what they embed, and what prepares that.
KINDS: dict[str, tuple[str, Any]] = {
    **dict.fromkeys(VISION_CONFIGS, ("image", AutoImageProcessor)),
    **dict.fromkeys(TEXT_CONFIGS, ("text", AutoTokenizer)),
}


def is_tower(name: str, revision: str | None) -> bool:
    """Whether a folder or Hub id holds one tower alone; not where it cannot be read."""
    try:
        return PreTrainedConfig.get_config_dict(name, revision=revision)[0].get("model_type") in KINDS
    except (OSError, ValueError):
        return False


class DemoTower:
    """A tower, of which requests of several threads wait for each other.

    Takes the arguments of `DemoModel`.

    Raises:
        UserError: there is no such device, or the folder is damaged.
    """

    def __init__(self, name: str, revision: str | None, device: str, dtype: str):
        place = pick_device(device)
        settings = {"revision": revision, "trust_remote_code": False}
        with failing_as(f"{name} cannot be loaded, as a file of it is missing or damaged.", UserError):
            dtype = dtype if dtype == "auto" else getattr(torch, dtype)
            model, info = AutoModel.from_pretrained(name, dtype=dtype, output_loading_info=True, **settings)
            self.takes, preparing = KINDS[model.config.model_type]
            self.prepare = preparing.from_pretrained(name, **settings)
        if info["missing_keys"]:
            raise UserError(f"{name} does not hold a whole tower: {len(info['missing_keys'])} tensors are missing.")
        self.model: PreTrainedModel = model.eval().to(place)
        self.lock = threading.Lock()

    @property
    def summary(self) -> str:
        """Sentences on what the model is and lacks, for the page."""
        return (
            f"One tower alone, of {self.takes}s: it tells how alike two {self.takes}s are. Captions, labels and heat "
            "maps need both towers."
        )

    def compare(self, first: Any, second: Any, warn: Callable[[str], object] | None = None) -> float:
        """Cosine of two images, or of two texts."""
        if self.takes == "text":
            token_counts(self.prepare, [first, second], warn)
        with self.lock, torch.inference_mode():
            # One by one, as NaFlex's images have shapes of their own.
            features = [
                self.model(**self.prepare(one, return_tensors="pt").to(self.model.device)).pooler_output
                for one in (first, second)
            ]
        if features[0].ndim != 2:
            raise UserError(f"This tower does not pool: its embeddings have the shape {tuple(features[0].shape)}.")
        return float(F.cosine_similarity(*(vector.float() for vector in features)))


def compare_tab(tower: DemoTower):
    """Add what compares two images or two texts."""
    with gr.Row():
        if tower.takes == "image":
            inputs = [image_input(label) for label in ("First", "Second")]
        else:
            inputs = [gr.Textbox("", label=label, max_length=MAX_LETTERS) for label in ("First", "Second")]
    button = gr.Button("Compare", variant="primary")
    result = gr.Textbox(label="Cosine of their embeddings: 1 for the same, about 0 for unlike ones", interactive=False)

    def compare(first, second):
        """Cosine of the embeddings of two inputs."""
        with sentences():
            if tower.takes == "image":
                return f"{tower.compare(given(first), given(second)):.4f}"
            if not (first.strip() and second.strip()):
                raise UserError("There are no two texts yet: type both.")
            return f"{tower.compare(first, second, warn):.4f}"

    on_model(button.click, compare, inputs, result, "compare")
