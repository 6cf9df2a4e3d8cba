"""Export the image tower, the text tower and a caption step with torch.export and to ONNX, and compare with eager.

    python examples/export_onnx.py [FOLDER] [--output FOLDER]

FOLDER is a converted model, dual or CoCa; by default the digits checkpoint is converted. The exported files take any
number of images and texts, of any length up to the model's. A caption step takes all tokens so far: without a cache it
is one file without state, run once for each word. Needs onnxscript and onnxruntime.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from digits.digits_data import held_out_pictures
from digits.model_folder import model_folder
from torch import nn
from torch.export import Dim
from transformers import AutoModel, AutoProcessor


class ImageTower(nn.Module):
    """(batch, channels, height, width) -> embeddings (batch, projection_dim) and tokens, CoCa's for its decoder."""

    input_names, output_names = ["pixel_values"], ["image_embeds", "image_hidden_states"]

    def __init__(self, model):
        super().__init__()
        self.vision_model = model.vision_model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.vision_model(pixel_values)
        return outputs.pooler_output, outputs.last_hidden_state


class TextTower(nn.Module):
    """(batch, length) of ids -> embeddings (batch, projection_dim)."""

    input_names, output_names = ["input_ids"], ["text_embeds"]

    def __init__(self, model):
        super().__init__()
        self.text_model = model.text_model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.text_model(input_ids).pooler_output,)


class CaptionStep(nn.Module):
    """The tokens so far (batch, length) and image tokens -> logits of the next token (batch, vocab_size)."""

    input_names, output_names = ["input_ids", "image_hidden_states"], ["logits"]

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, image_hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.model(input_ids, image_hidden_states=image_hidden_states, logits_to_keep=1)
        return (outputs.logits[:, -1],)


def largest_difference(outputs, expected) -> float:
    """The largest difference of any output, relative to its largest expected value."""
    return max(((torch.as_tensor(a) - b).abs().max() / b.abs().max()).item() for a, b in zip(outputs, expected))


def load_onnx(file: Path) -> Callable[..., list[np.ndarray]]:
    """An exported file as a function of arrays."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs)))


def export(module: nn.Module, inputs: tuple, max_length: int, file: Path) -> tuple[float, float]:
    """Exports from half of the inputs and runs on all of them, and on the first alone.

    Returns:
        The relative differences from eager of the exported program's outputs and of ONNX's.
    """
    batch, length = Dim("batch"), Dim("length", max=max_length)
    shapes = tuple({0: batch, 1: length} if name == "input_ids" else {0: batch} for name in module.input_names)
    half = tuple(tensor[: len(tensor) // 2].contiguous() for tensor in inputs)  # their strides would be fixed, too
    program = torch.export.export(module, half, dynamic_shapes=shapes)
    names = {"input_names": module.input_names, "output_names": module.output_names}
    torch.onnx.export(program, dynamo=True, verbose=False, **names).save(file)

    exported, onnx, differences = program.module(), load_onnx(file), []
    for some in (inputs, tuple(tensor[:1] for tensor in inputs)):
        expected, outputs = module(*some), onnx(*(tensor.numpy() for tensor in some))
        differences.append((largest_difference(exported(*some), expected), largest_difference(outputs, expected)))
    return max(differences)[0], max(difference for _, difference in differences)


def caption_onnx(folder: Path, pixel_values: np.ndarray, config, max_length: int) -> np.ndarray:
    """Greedy captions by the exported files alone: ids (images, length), from the start of text on."""
    image_tower, caption_step = load_onnx(folder / "ImageTower.onnx"), load_onnx(folder / "CaptionStep.onnx")
    tokens = image_tower(pixel_values)[1]
    ids, ended = np.full((len(tokens), 1), config.bos_token_id), np.zeros(len(tokens), bool)
    while ids.shape[1] < max_length and not ended.all():
        (logits,) = caption_step(ids, tokens)
        chosen = np.where(ended, config.pad_token_id, logits.argmax(-1))
        ids, ended = np.concatenate([ids, chosen[:, None]], axis=1), ended | (chosen == config.eos_token_id)
    return ids


@torch.no_grad()
def main(arguments: list[str] | None = None) -> dict[str, tuple[float, float]]:
    """Runs the example.

    Returns:
        The differences of each part, by its name, as [`export`] gives them; for a CoCa under "captions" the number of
        captions that ONNX writes and how many of them are what `generate` gives.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="converted model (default: the digits checkpoint)")
    parser.add_argument("--output", type=Path, help="folder for the ONNX files (default: a temporary one)")
    args = parser.parse_args(arguments)

    with model_folder(args.folder) as folder, tempfile.TemporaryDirectory() as temporary:
        output = args.output or Path(temporary)
        output.mkdir(parents=True, exist_ok=True)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(folder)
        pictures = held_out_pictures(8)
        pixel_values = processor(images=[picture.image for picture in pictures], return_tensors="pt")["pixel_values"]
        input_ids = processor(text=[picture.caption for picture in pictures], return_tensors="pt")["input_ids"]
        parts = [(ImageTower(model), (pixel_values,)), (TextTower(model), (input_ids,))]
        if model.can_generate():
            tokens = model.get_image_features(pixel_values).last_hidden_state
            parts.append((CaptionStep(model), (input_ids[:, :4], tokens)))

        results = {}
        print(f"{'part':12} {'torch.export':>12} {'ONNX':>12}   (relative difference from eager)")
        for module, inputs in parts:
            name = type(module).__name__
            max_length = model.config.text_config.max_position_embeddings
            results[name] = export(module, inputs, max_length, output / f"{name}.onnx")
            print(f"{name:12} {results[name][0]:12.1e} {results[name][1]:12.1e}")
        if model.can_generate():
            ids = caption_onnx(output, pixel_values.numpy(), model.config, model.generation_config.max_length)
            captions = processor.batch_decode(ids, skip_special_tokens=True)
            expected = processor.batch_decode(model.generate(pixel_values=pixel_values), skip_special_tokens=True)
            results["captions"] = (len(captions), sum(a == b for a, b in zip(captions, expected)))
            print(f"{results['captions'][1]} of {results['captions'][0]} captions by ONNX are what generate gives")
    return results


if __name__ == "__main__":
    main()
