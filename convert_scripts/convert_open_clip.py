"""Conversion of an open_clip checkpoint to a folder that transformers loads: the whole of it, in reading order."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .checkpoint import load_checkpoint
from .common import checks_types, dtype_name, user_path
from .hub.bundle import bundle_folder
from .hub.provenance import license_beside, write_provenance
from .native.sources import find_native_source, load_native_checkpoint
from .outputs import check_output, new_folder
from .sources.source import SourceOptions
from .sources.weights import file_sha256
from .verify.conversion import Verification, check_mode, verify_conversion
from .write.folder import dtype_notes, output_dtype, write_model
from .write.forms import check_form, output_form, processor_parts


@dataclass(frozen=True)
class ConversionReport:
    """Result of a conversion; `str()` of it is meant for people.

    Args:
        source: the source as it was given.
        weights_file: the weights file that was read.
        sha256: its SHA-256, in hexadecimal.
        output_dir: the folder written.
        model_type: `model_type` of our configuration.
        architecture: name of our model class.
        dtype: of the tensors written, such as `"float32"`.
        num_tensors: tensors written.
        num_parameters: numbers in them.
        dropped: keys of the checkpoint that were left out -> why.
        changed: keys of the checkpoint that were resized or added, as open_clip does at load -> how.
        notes: other decisions.
        verification: its result.
    """

    source: str
    weights_file: Path
    sha256: str
    output_dir: Path
    model_type: str
    architecture: str
    dtype: str
    num_tensors: int
    num_parameters: int
    verification: Verification
    dropped: Mapping[str, str] = field(default_factory=dict)
    changed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"Converted {self.source}",
            f"  weights      {self.weights_file.name}, sha256 {self.sha256}",
            f"  to           {self.output_dir}",
            f"  model        {self.architecture} ({self.model_type}), {self.num_parameters:,} parameters in "
            f"{self.num_tensors} tensors, {self.dtype}",
        ]
        for title, entries in (("dropped", self.dropped), ("changed", self.changed)):
            lines += [f"  {title:<12} {key}: {reason}" for key, reason in entries.items()]
        lines += [f"  note         {note}" for note in self.notes]
        return "\n".join([*lines, str(self.verification)])


@checks_types
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
    """Convert an open_clip checkpoint.

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
            in open_clip's `model_configs/`; beside `model_name`, what differs from that architecture, such as
            `{"preprocess_cfg": ...}` or `{"init_logit_bias": -10}`. Image settings that are stated neither here nor
            in an `open_clip_config.json` beside the weights are those that all published weights of the architecture
            share, or open_clip's defaults, and the report notes them.
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
        A report of the checkpoint, the decisions, the files and the verification.

    Raises:
        ConversionError: a `ValueError` that says what was found, what was expected and what to do: there is no such
            source, its architecture is not known or not supported, keys or shapes do not fit, the activation is
            ambiguous, tokenizer files are missing, the output is not empty, or the verification failed.
        OSError: a file cannot be read or written.
    """
    check_mode(verify)
    check_form(target, tower, bundle)
    output = user_path(output_dir)
    check_output(output)
    needed = processor_parts(tower) if with_processor else ()
    options = SourceOptions(source, model_name, config, pretrained, revision, ema, reparameterize)
    native = find_native_source(options)
    checkpoint = load_checkpoint(options, needed) if native is None else load_native_checkpoint(*native, needed)
    form = output_form(checkpoint.plan, target, tower)
    dtype = output_dtype(checkpoint.plan, dtype)
    weights = checkpoint.source.weights

    # Hashing waits for the disk, and leaves the file in memory for the conversion.
    with ThreadPoolExecutor(1) as hashing, new_folder(output) as folder:
        sha256 = hashing.submit(file_sha256, weights)
        write_model(folder, form.plan, dtype, max_shard_size)
        if with_processor:
            form.save_processor(checkpoint.image_processor, checkpoint.tokenizer, folder)
        report = ConversionReport(
            source=checkpoint.source.name,
            weights_file=weights,
            sha256=sha256.result(),
            output_dir=output,
            model_type=form.plan.model.config.model_type,
            architecture=type(form.plan.model).__name__,
            dtype=dtype_name(dtype),
            num_tensors=len(form.plan.layout),
            num_parameters=form.plan.model.num_parameters(),
            verification=verify_conversion(folder, form.plan, checkpoint.reference, verify),
            dropped=checkpoint.plan.dropped,
            changed=checkpoint.plan.changed,
            notes=(
                *checkpoint.notes,
                *dtype_notes(checkpoint.plan, dtype),
                *form.notes,
                *(form.processor_notes if with_processor else ()),
            ),
        )
        if bundle:
            bundle_folder(folder)
        write_provenance(folder, report, options, license_beside(weights))
    return report
