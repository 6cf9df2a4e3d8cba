"""Conversion of an open_clip checkpoint to a folder that transformers loads: the whole of it, in reading order."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from .checkpoint import prepare_open_clip
from .common import ConversionError
from .hub.bundle import bundle_folder
from .hub.provenance import license_beside, write_provenance
from .native.sources import find_native_source, prepare_native
from .report import ConversionReport
from .sources.source import open_source
from .sources.weights import file_sha256
from .verify.conversion import MODES
from .write.folder import check_output, new_folder, output_dtype, write_model
from .write.forms import check_form, output_form, processor_parts


def convert_open_clip_checkpoint(
    source: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    model_name: str | None = None,
    config: str | os.PathLike | Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    revision: str | None = None,
    with_processor: bool = True,
    dtype: str | torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    verify: str = "auto",
    ema: bool = False,
    reparameterize: bool = False,
    target: str = "ours",
    tower: str | None = None,
    bundle: bool = False,
) -> ConversionReport:
    """Converts an open_clip checkpoint.

    Writes `config.json`, `model.safetensors` (or its shards and their index), `generation_config.json` for CoCa, and
    the files of the processor. The folder needs neither open_clip nor a network. The source is not changed, and a
    conversion that fails leaves nothing behind.

    Args:
        source: a folder with `open_clip_config.json` and weights; a Hub id `"org/name"` or `"org/name@revision"`; a
            weights file (`.pt`, `.pth`, `.bin`, `.safetensors`, `.npz`), training checkpoints and OpenAI's archives
            included, or the index of several (`model.safetensors.index.json`); or, with `pretrained`, the name of an
            architecture such as `"ViT-B-32"`. Also a folder of transformers' own `CLIPModel`, `SiglipModel` or
            `MetaClip2Model`. Nothing in it is executed.
        output_dir: the folder to write, which must not exist or be empty.
        model_name: open_clip's name of the architecture, such as `"coca_ViT-L-14"` or `"ViT-B-32-quickgelu"`, where
            the source does not hold its configuration. OpenAI's archives need none.
        config: instead of `model_name`, the contents or the path of a file like `open_clip_config.json` or like those
            in open_clip's `model_configs/`; beside `model_name`, `{"preprocess_cfg": ...}`.
        pretrained: open_clip's tag of the weights, such as `"laion2b_s34b_b79k"`, whose activation and image settings
            are applied. They are downloaded from the Hugging Face Hub, or, with `model_name`, are the source's.
        revision: branch, tag or commit of the Hub repository.
        with_processor: also write the image processor and the tokenizer.
        dtype: dtype of the tensors written, as a `torch.dtype` or `"float32"`, `"float16"`, `"bfloat16"`; by default
            the checkpoint's, or fp32 where it has several.
        max_shard_size: largest weights file, in bytes or as in `"5GB"`.
        verify: `"auto"` compares the outputs with open_clip's where that is installed; `"full"` demands it;
            `"structure"` compares the tensors alone; `"none"` compares nothing. Comparing outputs takes the memory of
            the model in fp32, twice for a checkpoint of another dtype; all else needs little, whatever the size.
        ema: take the exponential moving average of the weights that a training checkpoint keeps beside them.
        reparameterize: fuse the branches that timm's image towers such as MobileCLIP's have in training. The converted
            model gives the same outputs in less time, and is for inference alone.
        target: `"ours"`, or `"native"` for transformers' own `CLIPModel`, `SiglipModel` or `MetaClip2Model` where the
            architecture is the same, for libraries that know these alone.
        tower: `"vision"` or `"text"` for that tower alone, with its projection, and its part of the processor.
        bundle: also write the code that people need who do not have this package; see `bundle_folder`.

    Returns:
        A report of what was read, decided, written and verified.

    Raises:
        ConversionError: a `ValueError` that says what was found, what was expected and what to do: there is no such
            source, its architecture is not known or not supported, keys or shapes do not fit, the activation is
            ambiguous, tokenizer files are missing, the output is not empty, or the verification failed.
        OSError: a file cannot be read or written.
    """
    if verify not in MODES:
        raise ConversionError(f"verify must be one of {', '.join(MODES)}, got {verify!r}.")
    check_form(target, tower, bundle)
    output = Path(output_dir).expanduser()
    check_output(output)
    needed = processor_parts(tower) if with_processor else ()
    native = find_native_source(source) if model_name is config is pretrained is None else None
    if native is not None:
        prepared = prepare_native(*native, needed)
    else:
        opened = open_source(source, model_name, config, pretrained, revision)
        prepared = prepare_open_clip(opened, needed, ema, reparameterize)
    form = output_form(prepared.plan, target, tower)
    dtype = output_dtype(prepared.plan, dtype)
    notes = prepared.notes + form.notes + (form.processor_notes if with_processor else ())

    # Hashing waits for the disk, and what it reads is then in memory for the conversion.
    with ThreadPoolExecutor(1) as hashing, new_folder(output) as folder:
        sha256 = hashing.submit(file_sha256, prepared.weights)
        write_model(folder, form.plan, dtype, max_shard_size)
        if with_processor:
            form.save_processor(prepared.image_processor, prepared.tokenizer, folder)
        verification = form.verify(folder, prepared.reference, verify)
        report = ConversionReport(
            source=prepared.name,
            weights_file=prepared.weights,
            sha256=sha256.result(),
            output_dir=output,
            model_type=form.plan.model.config.model_type,
            architecture=type(form.plan.model).__name__,
            dtype=str(dtype).removeprefix("torch."),
            num_tensors=len(form.plan.shapes),
            num_parameters=form.plan.model.num_parameters(),
            verification=verification,
            dropped=prepared.plan.dropped,
            changed=prepared.plan.changed,
            notes=notes,
        )
        if bundle:
            bundle_folder(folder)
        write_provenance(folder, report, license_beside(prepared.weights))
    return report
