"""The random weights that all contestants of a cell share: made once per run, in the form that each of them loads.

    python -m contestants.weights open_clip ViT-B-32 FOLDER

Weights are made in a process of their own, so that the memory of a contestant is its own.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from contestants.model_inputs import architecture, input_ids, pixel_values


def weights_folder(form: str, settings: dict, folder: Path) -> Path:
    """Return the folder of an architecture in one of `FORMS`; the first call makes it, in a process of its own.

    Args:
        form: `"open_clip"`, `"ours"`, `"transformers"` for its own CLIPModel or SiglipModel, or `"features"`.
        settings: a cell's; `model` and `reduced` are read.
        folder: the run's folder, which all contestants share.
    """
    path = _path(form, settings, folder)
    if not path.exists():
        arguments = [form, settings["model"], str(folder), *["--reduced"] * settings["reduced"]]
        command = [sys.executable, "-m", "contestants.weights", *arguments]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode:
            raise OSError(f"contestants.weights {' '.join(arguments)} failed:\n{made.stderr}")
    return path


def make_weights(form: str, settings: dict, folder: Path) -> Path:
    """Make the folder within this process."""
    path = _path(form, settings, folder)
    if not path.exists():
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.mkdir()
        FORMS[form](settings, folder, unfinished)
        unfinished.rename(path)
    return path


def _path(form: str, settings: dict, folder: Path) -> Path:
    return folder / f"{settings['model']}{'-reduced' if settings['reduced'] else ''}-{form}"


def random_tensor(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw values of a size that keeps activations near 1 in any number of layers."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if name == "logit_scale":
        return torch.full(like.shape, math.log(1 / 0.07))
    values = torch.randn(like.shape, generator=generator)
    if like.ndim == 1 and name.endswith((".weight", ".running_var")):
        return 1 + 0.1 * values.clamp(-3, 3)
    return values * (0.02 if like.ndim < 2 else like.shape[1:].numel() ** -0.5)


def write_open_clip(settings: dict, folder: Path, output: Path):
    """Write a folder for open_clip's `local-dir:FOLDER`, with normally distributed weights of a fixed seed."""
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    model_cfg = architecture(settings)
    arguments = {name: value for name, value in model_cfg.items() if name != "custom_text"}
    model_class = CoCa if "multimodal_cfg" in model_cfg else CustomTextCLIP if "custom_text" in model_cfg else CLIP
    with torch.device("meta"):
        layout = model_class(**arguments).state_dict()
    generator = torch.Generator().manual_seed(0)
    tensors = {name: random_tensor(name, tensor, generator) for name, tensor in layout.items()}
    save_file(tensors, output / "open_clip_model.safetensors", {"format": "pt"})
    config = {"model_cfg": model_cfg, "preprocess_cfg": {}}
    (output / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_converted(settings: dict, folder: Path, output: Path, target: str):
    """Write the converted folder: ours, or with `target="native"` that of transformers' own class."""
    from open_clip_transformers import convert_open_clip_checkpoint

    source = make_weights("open_clip", settings, folder)
    # Other tokenizers than CLIP's would have to be downloaded.
    has_tokenizer = "hf_tokenizer_name" not in architecture(settings)["text_cfg"]
    convert_open_clip_checkpoint(source, output, with_processor=has_tokenizer, verify="none", target=target)


def write_features(settings: dict, folder: Path, output: Path):
    """Write open_clip's features in fp32, `image` and `text`, of the first image and text that cells run on."""
    import open_clip

    settings = {**settings, "batch": 1, "dtype": "float32", "device": "cpu"}
    source = make_weights("open_clip", settings, folder)
    model = open_clip.create_model(f"local-dir:{source}").eval()
    with torch.inference_mode():
        features = {
            "image": model.encode_image(pixel_values(settings)),
            "text": model.encode_text(input_ids(settings)),
        }
    save_file(features, output / "features.safetensors")


FORMS = {
    "open_clip": write_open_clip,
    "ours": lambda *arguments: write_converted(*arguments, target="ours"),
    "transformers": lambda *arguments: write_converted(*arguments, target="native"),
    "features": write_features,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("form", choices=FORMS)
    parser.add_argument("model", help="open_clip's name of an architecture")
    parser.add_argument("folder", type=Path, help="the folder to make it in")
    parser.add_argument("--reduced", action="store_true", help="narrow and shallow")
    args = parser.parse_args()
    make_weights(args.form, {"model": args.model, "reduced": args.reduced}, args.folder)


if __name__ == "__main__":
    main()
