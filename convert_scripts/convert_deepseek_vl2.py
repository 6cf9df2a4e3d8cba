"""Conversion of the vision tower of DeepSeek-VL2 (DeepSeek-VL2: `siglip_vit.py`, and `VisionEncoderConfig` in
`modeling_deepseek_vl_v2.py`).

python -m open_clip_transformers.convert_scripts.convert_deepseek_vl2 SOURCE OUT
"""

import argparse
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..configuration.configuration_common import height_and_width
from ..configuration.configuration_siglip_vit import DEEPSEEK_VL2_SIZES, SiglipVitConfig
from ..modeling.modeling_siglip_vit import SiglipVitModel
from ..processing.image_processing_pil_open_clip import OpenClipImageProcessorPil
from ..processing.image_settings_open_clip import channel_values
from .common import (
    ConversionError,
    check_no_pointer,
    checks_types,
    dtype_name,
    failing_as,
    listing,
    read_json,
    user_path,
)
from .mapping.plan import plan_tensors
from .outputs import check_output, new_folder
from .processors.image import IMAGE_PROCESSOR_FILES
from .towers.siglip_vit import TIMM_VIT
from .verify.conversion import check_tensors, check_values
from .write.folder import DTYPES, output_dtype, write_model


PREFIX = "vision."
# DeepSeek-VL2 builds its tower from the fields of `vision_config`, whose defaults are the sizes of this name.
DEFAULT_NAME = "siglip_large_patch16_384"
# Field of `vision_config` -> ours. All others are without effect: they name the model, or are settings of training.
FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "class_token": "use_class_token",
    "ignore_head": "ignore_head",
    "deterministic": "deterministic",
    "num_recomputing_layers": "num_recomputing_layers",
}
POOL_TYPES = {"map": "map", "avg": "avg", "token": "token", "": "none"}


@checks_types
def convert_deepseek_vl2(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
) -> SiglipVitModel:
    """Convert the vision tower of a DeepSeek-VL2 checkpoint to a folder that [`SiglipVitModel`] loads.

    Writes `config.json`, `model.safetensors` (or its shards and their index) and the image processor. Tensors of the
    language model are not read. The source is not changed, and a conversion that fails leaves nothing behind.

    As in the original, the model gives features and no pooled vector; `from_pretrained(..., ignore_head=False)` gives
    both. The image processor makes the original's global view: the whole image, padded with grey to a square, an odd
    pixel of padding perhaps on the other side.

    Args:
        source: the checkpoint's folder, with `config.json` and safetensors weights in one file or in shards; or one
            safetensors file beside its `config.json`.
        output_dir: the folder to write, which must not exist or be empty.
        dtype: dtype of the tensors written, as a `torch.dtype` or `"float32"`, `"float16"`, `"bfloat16"`; by default
            the checkpoint's.
        max_shard_size: largest weights file, in bytes or as in `"5GB"`.

    Returns:
        The model that was written, on the meta device.

    Raises:
        ConversionError: a `ValueError` that says what was found, what was expected and what to do: no such files, a
            configuration that describes no model, keys or shapes that do not fit it, or an output that is not empty.
        OSError: a file cannot be read or written.
    """
    path, output = user_path(source), user_path(output_dir)
    check_output(output)
    if not path.exists():
        raise ConversionError(f"{path}: there is no such file or folder.")
    folder = path if path.is_dir() else path.parent
    config = build_vision_config(read_json(folder / "config.json").get("vision_config"))
    image_processor = _build_image_processor(folder, config)
    with _open_tensors(path) as tensors:
        with torch.device("meta"):
            model = SiglipVitModel(config)
        plan = plan_tensors(model, tensors, tensors, TIMM_VIT, dropped={}, changed={})
        with new_folder(output) as new:
            write_model(new, plan, output_dtype(plan, dtype), max_shard_size)
            image_processor.save_pretrained(new)
            check_tensors(new, plan)
            check_values(new)
    return model


def build_vision_config(vision_config: Mapping[str, Any] | None) -> SiglipVitConfig:
    """Our configuration for the `vision_config` in a DeepSeek-VL2 checkpoint's `config.json`.

    Raises:
        ConversionError: there is none, or its values do not describe a model.
    """
    if not isinstance(vision_config, Mapping):
        raise ConversionError(f"config.json has no vision_config of DeepSeek-VL2: got {vision_config!r}.")
    name = str(vision_config.get("model_name"))
    name = name if name in DEEPSEEK_VL2_SIZES else DEFAULT_NAME
    pool = vision_config.get("global_pool", "map")
    if pool not in list(POOL_TYPES):
        raise ConversionError(f"vision_config: global_pool must be one of {list(POOL_TYPES)}, got {pool!r}.")
    fields = {ours: vision_config[theirs] for theirs, ours in FIELDS.items() if theirs in vision_config}
    # The attention pooler sees the class token too, which the mean leaves out.
    fields |= {
        "pool_type": POOL_TYPES[pool],
        "pool_include_prefix": pool == "map" and bool(fields.get("use_class_token")),
    }
    try:
        if "mlp_ratio" in vision_config:
            width = fields.get("hidden_size", DEEPSEEK_VL2_SIZES[name]["hidden_size"])
            fields["intermediate_size"] = int(width * vision_config["mlp_ratio"])
        return SiglipVitConfig.from_name(name, **fields)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ConversionError(f"vision_config does not describe a model that can be built: {error}") from error


def _build_image_processor(folder: Path, config: SiglipVitConfig) -> OpenClipImageProcessorPil:
    """The image processor of the checkpoint, whose files are read for its mean and standard deviation alone."""
    path = next((folder / name for name in IMAGE_PROCESSOR_FILES if (folder / name).is_file()), None)
    settings = {} if path is None else read_json(path)
    mean, std = (settings.get(name, [0.5, 0.5, 0.5]) for name in ("image_mean", "image_std"))
    for name, values in {"image_mean": mean, "image_std": std}.items():
        if not (isinstance(values, list) and len(values) == 3):
            raise ConversionError(f"{path}: {name} must be a list of three numbers, got {values!r}.")
        with failing_as(f"{path}"):
            channel_values(name, values)
    height, width = height_and_width(config.image_size)
    return OpenClipImageProcessorPil(
        size={"height": height, "width": width},
        image_mean=mean,
        image_std=std,
        resize_mode="longest",
        fill_color=int(mean[0] * 255),
    )


@contextmanager
def _open_tensors(path: Path) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors below `vision.`, without the prefix: views of the mapped files, read when they are used."""
    tensors: dict[str, torch.Tensor] = {}
    others = set()
    with ExitStack() as stack:
        for file in _weights_files(path):
            check_no_pointer(file)
            try:
                weights = stack.enter_context(safe_open(file, framework="pt"))
            except SafetensorError as error:
                raise ConversionError(f"{file} cannot be read: {error}") from error
            for key in weights.keys():  # noqa: SIM118  not a dict
                if key.startswith(PREFIX):
                    tensors[key.removeprefix(PREFIX)] = weights.get_tensor(key)
                else:
                    others.add(key.split(".")[0])
        if not tensors:
            raise ConversionError(_no_vision_keys(path, others))
        yield tensors


def _weights_files(path: Path) -> list[Path]:
    """The files of a checkpoint that hold its vision tower."""
    if path.is_file():
        return [path]
    index = path / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        weight_map = read_json(index).get("weight_map") or {}
        # Shards lie beside their index, whatever it says.
        names = sorted({Path(name).name for key, name in weight_map.items() if key.startswith(PREFIX)})
        if not names:
            raise ConversionError(_no_vision_keys(index, {key.split(".")[0] for key in weight_map}))
        missing = [name for name in names if not (path / name).is_file()]
        if missing:
            raise ConversionError(f"{path} lacks these files, which hold the vision tower:{listing(missing)}")
        return [path / name for name in names]
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise ConversionError(
            f"{path} holds no {SAFE_WEIGHTS_INDEX_NAME}, and not just one safetensors file but {found}: give the file."
        )
    return files


def _no_vision_keys(path: Path, others: Collection[str]) -> str:
    return (
        f"{path} has no keys that begin with {PREFIX!r}, as those of DeepSeek-VL2's vision tower do; its keys begin "
        f"with:{listing(sorted(others))}"
    )


def main(args: Sequence[str] | None = None):
    """The command line; `args` are its arguments, by default those of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m open_clip_transformers.convert_scripts.convert_deepseek_vl2",
        description="Converts the vision tower of a DeepSeek-VL2 checkpoint to a folder of a SiglipVitModel.",
    )
    parser.add_argument("source", metavar="SOURCE", help="the checkpoint's folder, or a safetensors file in it")
    parser.add_argument("output", metavar="OUT", help="the folder to write, new or empty")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="dtype to write, by default the checkpoint's")
    parser.add_argument("--max-shard-size", default="5GB", help="largest weights file, by default %(default)s")
    options = parser.parse_args(args)
    try:
        model = convert_deepseek_vl2(
            options.source, options.output, dtype=options.dtype, max_shard_size=options.max_shard_size
        )
    except (ConversionError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(
        f"Wrote {options.output}: {type(model).__name__} of {model.num_parameters():,} parameters in "
        f"{dtype_name(model.config.dtype)}, every tensor equal to the checkpoint's."
    )


if __name__ == "__main__":
    main()
