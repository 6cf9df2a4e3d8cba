"""Conversion of one of our folders back to a folder that open_clip loads with `local-dir:`, in reading order."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..processing.tokenization_open_clip import OpenClipTokenizer
from .common import ConversionError, argument, checks_types, dtype_name, failing_as, listing, user_path
from .mapping.config import TokenIds, build_config, build_model_cfg, default_token_ids
from .mapping.config_table import text_fields_of
from .mapping.plan import plan_conversion, rename_table
from .mapping.state_dict import Step, resolve
from .outputs import check_output, new_folder
from .processors.image import IMAGE_PROCESSOR_FILES, image_processor_class, preprocess_cfg_of, preprocess_defaults
from .processors.tokenizers import save_open_clip_tokenizer, tokenizer_cfg_of
from .sources.weights import CONFIG_FILE, WEIGHTS_FILES, read_weights
from .verify.conversion import Verification, check_mode, check_values, reference_outputs, verify_conversion
from .write.folder import ConvertedFolder, parse_dtype, read_converted_folder
from .write.safetensors import write_safetensors


@dataclass(frozen=True)
class OpenClipReport:
    """Result of a conversion to open_clip; `str()` of it is meant for people.

    Args:
        source: the folder that was converted.
        output_dir: the folder written.
        architecture: open_clip's class of the model.
        dtype: of the tensors written, such as `"float32"`; `"mixed"` where there are several.
        num_tensors: tensors written.
        num_parameters: numbers in them.
        verification: its result.
        notes: other decisions.
    """

    source: Path
    output_dir: Path
    architecture: str
    dtype: str
    num_tensors: int
    num_parameters: int
    verification: Verification
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"Converted {self.source}",
            f"  to           {self.output_dir}, which open_clip loads as local-dir:{self.output_dir}",
            f"  model        {self.architecture}, {self.num_parameters:,} parameters in {self.num_tensors} tensors, "
            f"{self.dtype}",
        ]
        lines += [f"  note         {note}" for note in self.notes]
        return "\n".join([*lines, str(self.verification)])


@checks_types
def convert_to_open_clip(
    folder: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    with_processor: bool = True,
    hf_tokenizer_name: str | None = None,
    dtype: str | torch.dtype | None = None,
    verify: str = "auto",
) -> OpenClipReport:
    """Convert a folder of one of our models to open_clip's form.

    Writes `open_clip_config.json`, `open_clip_model.safetensors` and, where the tokenizer is not CLIP's own, its
    files. One tensor at a time is in memory. The folder is not changed, and a conversion that fails leaves nothing
    behind.

    Args:
        folder: a folder of a dual model or of a captioner, as a conversion or `save_pretrained` writes it.
        output_dir: the folder to write, which must not exist or be empty.
        with_processor: also write the settings of the image processor and the tokenizer, which the folder must hold.
        hf_tokenizer_name: open_clip's name for the tokenizer where it is not CLIP's own: the Hub id at which it finds
            it once the result is on the Hub too. In a local folder it takes the files that are there.
            By default the name of `output_dir`.
        dtype: dtype of the tensors written, as a `torch.dtype` or `"float32"`, `"float16"`, `"bfloat16"`; by default
            the folder's.
        verify: `"auto"` compares the outputs of both where open_clip is installed; `"full"` demands it; `"structure"`
            compares the tensors alone; `"none"` compares nothing.

    Raises:
        ConversionError: a `ValueError` that says what was found, what was expected and what to do: the folder is not
            one of ours, or has settings that open_clip cannot express, which are named.
        OSError: a file cannot be read or written.
    """
    check_mode(verify)
    output = user_path(output_dir)
    check_output(output)
    source = read_converted_folder(user_path(folder))
    tokenizer = _load_tokenizer(source) if with_processor else None
    tokenizer_cfg = {} if tokenizer is None else tokenizer_cfg_of(tokenizer, hf_tokenizer_name or output.name)
    model_cfg = build_model_cfg(source.config, tokenizer_cfg)
    preprocess_cfg = _preprocess_cfg(source) if with_processor else {}
    notes = _notes(source.config, model_cfg, tokenizer)
    steps = _steps_back(source, model_cfg)
    layout = _layout(source.tensors, steps, parse_dtype(dtype))

    with new_folder(output) as new:
        config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
        (new / CONFIG_FILE).write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
        if tokenizer is not None:
            save_open_clip_tokenizer(tokenizer, new)
        write_safetensors(new / WEIGHTS_FILES[0], layout, _converted(source.tensors, steps))
        verification = _verify(source, new / WEIGHTS_FILES[0], model_cfg, verify, rounded=dtype is not None)
    dtypes = {dtype_name(tensor.dtype) for tensor in layout.values() if tensor.is_floating_point()}
    return OpenClipReport(
        source=source.path,
        output_dir=output,
        architecture=_architecture(model_cfg),
        dtype=dtypes.pop() if len(dtypes) == 1 else "mixed",
        num_tensors=len(layout),
        num_parameters=sum(tensor.numel() for tensor in layout.values()),
        verification=verification,
        notes=notes,
    )


def _load_tokenizer(source: ConvertedFolder) -> OpenClipTokenizer:
    if not (source.path / "tokenizer.json").is_file():
        raise ConversionError(
            f"{source.path} has no tokenizer: save it there, or convert with {argument('with_processor', False)}."
        )
    with failing_as(f"The tokenizer in {source.path} cannot be used"):
        return OpenClipTokenizer.from_pretrained(source.path)


def _preprocess_cfg(source: ConvertedFolder) -> dict[str, Any]:
    if not any((source.path / name).is_file() for name in IMAGE_PROCESSOR_FILES):
        raise ConversionError(
            f"{source.path} has no image processor: save it there, or convert with "
            f"{argument('with_processor', False)}."
        )
    with failing_as(f"The image processor in {source.path} cannot be used"):
        image_processor = image_processor_class(source.config).from_pretrained(source.path)
        return preprocess_cfg_of(image_processor, source.config)


def _notes(config, model_cfg: Mapping[str, Any], tokenizer: OpenClipTokenizer | None) -> tuple[str, ...]:
    if tokenizer is None:
        settings = ", ".join(f"{key} {value}" for key, value in preprocess_defaults().items())
        notes = [f"open_clip will use its own image settings ({settings}): for others set preprocess_cfg"]
        ids = TokenIds.of_config(config)
        known = default_token_ids(text_fields_of(model_cfg))
        if (ids.bos, ids.eos) != (known.bos, known.eos):
            notes.append("open_clip will use CLIP's tokenizer: for another set hf_tokenizer_name in text_cfg")
        return tuple(notes)
    name = text_fields_of(model_cfg).get("hf_tokenizer_name")
    if name is not None:
        return (f"on the Hub, open_clip looks for the tokenizer at {name!r} (hf_tokenizer_name)",)
    return ()


def _steps_back(source: ConvertedFolder, model_cfg: Mapping[str, Any]) -> list[Step]:
    table = rename_table(source.config, "" if _architecture(model_cfg) == "CLIP" else "text.")
    steps, unreachable = resolve(source.tensors, table, "targets")
    if unreachable:
        raise ConversionError(f"The rename table does not know these tensors: {', '.join(unreachable)}")
    return steps


def _converted(tensors: Mapping[str, torch.Tensor], steps: list[Step]) -> Iterator[tuple[str, torch.Tensor]]:
    """open_clip's names and tensors; views of ours where possible."""
    for step in steps:
        yield from step.invert(tensors)


def _layout(
    tensors: Mapping[str, torch.Tensor], steps: list[Step], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """The tensors to write, on the meta device."""
    meta = {
        name: torch.empty_like(tensor, device="meta", dtype=dtype if tensor.is_floating_point() else None)
        for name, tensor in tensors.items()
    }
    return dict(_converted(meta, steps))


def _verify(
    source: ConvertedFolder, weights: Path, model_cfg: Mapping[str, Any], mode: str, rounded: bool
) -> Verification:
    """Convert the written folder in the usual direction: it must give the folder that it came from."""
    if mode == "none":
        return Verification("none", "not asked for")
    plan = plan_conversion(build_config(model_cfg, TokenIds.of_config(source.config)), read_weights(weights).tensors)
    if not rounded:
        return verify_conversion(source.path, plan, partial(reference_outputs, model_cfg), mode)
    wrong = [
        name for name, tensor in plan.converted() if not torch.equal(source.tensors[name].to(tensor.dtype), tensor)
    ]
    if wrong:
        raise ConversionError(f"These tensors were not written as they should be:{listing(wrong)}")
    check_values(source.path)
    return Verification("structure", "every tensor equals the folder's, rounded to another dtype")


def _architecture(model_cfg: Mapping[str, Any]) -> str:
    if "text_cfg" not in model_cfg or model_cfg["text_cfg"].get("does_full_decoding"):
        return "MaMMUT"
    if "multimodal_cfg" in model_cfg:
        return "CoCa"
    return "CustomTextCLIP" if model_cfg.get("custom_text") or "hf_model_name" in text_fields_of(model_cfg) else "CLIP"
