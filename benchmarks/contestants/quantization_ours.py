"""Our models with weights in fp32, bf16 and int8."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from harness.measure import ROOT
from torch.nn.functional import cosine_similarity
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import AutoModel, AutoProcessor, PreTrainedModel, TorchAoConfig

from contestants.caption_common import EOS, captions
from contestants.model_inputs import pixel_values
from contestants.weights import weights_folder
from open_clip_transformers import convert_open_clip_checkpoint


sys.path.insert(0, str(ROOT / "examples"))
from digits.digits_data import held_out_pictures
from digits.model_folder import CHECKPOINT
from torchao_int8 import stored_bytes


@dataclass(frozen=True)
class Form:
    """The dtype that a model is loaded in, and the torchao configuration of its weights."""

    dtype: torch.dtype
    quantise: Callable | None = None

    def load(self, path: Path) -> PreTrainedModel:
        settings = {} if self.quantise is None else {"quantization_config": TorchAoConfig(self.quantise())}
        return AutoModel.from_pretrained(path, dtype=self.dtype, **settings)


class Quantised:
    """A model in a form."""

    def __init__(self, form: Form, settings: dict, folder: Path):
        self.settings = settings
        self.path = self.find(folder)
        self.model = form.load(self.path)
        self.prepare(form.dtype)

    def find(self, folder: Path) -> Path:
        return weights_folder("ours", self.settings, folder)

    def prepare(self, dtype: torch.dtype):
        """Make the inputs of `run`."""
        self.pixels = pixel_values({**self.settings, "dtype": str(dtype).removeprefix("torch.")})

    def figures(self) -> dict:
        """The bytes of the weights, and of features the smallest cosine with those in fp32."""
        exact = Form(torch.float32).load(self.path)
        features, expected = (self.features(model) for model in (self.model, exact))
        cosines = {
            f"cosine, {name}": cosine_similarity(features[name].float(), rows).min().item()
            for name, rows in expected.items()
        }
        return {"weights, MB": stored_bytes(self.model) / 1e6, **cosines}

    @torch.inference_mode()
    def features(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        return {"images": model.get_image_features(self.pixels.to(model.dtype)).pooler_output}


class Images(Quantised):
    def prepare(self, dtype: torch.dtype):
        super().prepare(dtype)
        self.encode = self.model.get_image_features
        if self.settings["compiled"]:
            self.encode = torch.compile(self.encode)
            self.run()

    @torch.inference_mode()
    def run(self) -> torch.Tensor:
        return self.encode(self.pixels).pooler_output

    def outputs(self) -> list[float]:
        return self.result[0].float().tolist()


class Captions(Quantised):
    def run(self) -> torch.Tensor:
        length = self.settings["length"]
        return self.model.generate(
            pixel_values=self.pixels, max_length=length, min_length=length - 1, forced_eos_token_id=EOS
        )

    def outputs(self) -> list | None:
        return captions(self.result, {**self.settings, "strategy": "greedy"})


class Digits(Quantised):
    """Captions of the digits model, whose words can be right or wrong."""

    def find(self, folder: Path) -> Path:
        path = folder / "digits"
        if not path.exists():
            convert_open_clip_checkpoint(CHECKPOINT, path, verify="structure")
        return path

    def prepare(self, dtype: torch.dtype):
        self.pictures = held_out_pictures(self.settings["pictures"])
        self.processor = AutoProcessor.from_pretrained(self.path)
        inputs = self.processor(images=[picture.image for picture in self.pictures], return_tensors="pt")
        self.pixels = inputs["pixel_values"].to(dtype)

    def run(self) -> torch.Tensor:
        return self.model.generate(pixel_values=self.pixels)

    def outputs(self) -> list[str]:
        return self.processor.batch_decode(self.result, skip_special_tokens=True)

    def figures(self) -> dict:
        wanted = [picture.caption for picture in self.pictures]
        right = sum(found == caption for found, caption in zip(self.outputs(), wanted)) / len(wanted)
        return {"right captions": right, **super().figures()}

    @torch.inference_mode()
    def features(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        texts = self.processor(text=[picture.caption for picture in self.pictures], return_tensors="pt", padding=True)
        return {**super().features(model), "texts": model.get_text_features(**texts).pooler_output}


TASKS: dict[str, type[Quantised]] = {"images": Images, "captions": Captions, "digits": Digits}
FORMS = {
    "ours": Form(torch.float32),
    "ours_bf16": Form(torch.bfloat16),
    "ours_int8": Form(torch.float32, Int8WeightOnlyConfig),
    "ours_int8_bf16": Form(torch.bfloat16, Int8WeightOnlyConfig),
    "ours_int8_dynamic": Form(torch.float32, Int8DynamicActivationInt8WeightConfig),
}


def make(form: Form, settings: dict, folder: Path) -> Quantised:
    """Make the contestant for the task of a cell."""
    return TASKS[settings["task"]](form, settings, folder)


CONTESTANTS = {name: partial(make, form) for name, form in FORMS.items()}
