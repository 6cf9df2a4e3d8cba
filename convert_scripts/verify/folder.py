"""Verification of a converted folder by open_clip running the checkpoint: the whole of it, in reading order."""

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import prepare_open_clip
from ..common import PACKAGE, ConversionError
from ..compare_folder import FolderComparison
from ..converted_folder import read_converted_folder
from ..hub.provenance import public_name
from ..sources.source import open_source
from ..sources.weights import file_sha256
from ..write.folder import DTYPES
from .reference import require_open_clip
from .report import GROUPS, VerificationReport


VERIFIED_DTYPES = ("float32", "bfloat16", "float16")
# Features and logits come with everything else.
SKIPPABLE = tuple(group for group in GROUPS if group not in ("features", "logits"))
LIBRARIES = ("open_clip_torch", "torch", "torchvision", "transformers", "timm")


def verify_folder(
    folder: str | os.PathLike,
    source: str | os.PathLike,
    *,
    model_name: str | None = None,
    config: str | os.PathLike | Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    revision: str | None = None,
    ema: bool = False,
    dtypes: Collection[str] = VERIFIED_DTYPES,
    skip: Collection[str] = (),
    pairs: int = 4,
    output_dir: str | os.PathLike | None = None,
) -> VerificationReport:
    """Compares a converted folder with open_clip running the checkpoint that it was made of.

    Writes `verification.md` and `verification.json`. Models run on the CPU, in eval mode also for gradients, on random
    images and texts that are always the same. In fp32 open_clip gets the values of the folder: of a conversion to half
    precision, the rounded ones. In half precision both models are cast as a whole, as by open_clip's
    `precision="pure_bf16"`. Captions are compared in fp32 alone: where two words are nearly as probable, rounding
    decides.

    Args:
        folder: a converted folder.
        source: the checkpoint; this and the next five as for `convert_open_clip_checkpoint`.
        model_name: open_clip's name of its architecture.
        config: its configuration.
        pretrained: open_clip's tag of it.
        revision: its branch, tag or commit on the Hub.
        ema: whether the averaged weights of a training checkpoint were taken.
        dtypes: what to compute in, of `"float32"`, `"bfloat16"` and `"float16"`.
        skip: what to leave out, of `"weights"`, `"pixels"`, `"tokens"`, `"intermediates"`, `"captions"`, `"losses"`
            and `"gradients"`. Without gradients, which need as much memory again as the weights, models that fill half
            of it can be verified.
        pairs: number of images and texts, at least 2.
        output_dir: where the report goes, by default the folder itself.

    Returns:
        The report, whose `passed` says whether everything is within its bound.

    Raises:
        ConversionError: open_clip is not installed or cannot run the model, the folder or the checkpoint cannot be
            read, or an argument is wrong.
        OSError: the report cannot be written.
    """
    wanted = _check_arguments(dtypes, skip, pairs)
    require_open_clip()
    converted = read_converted_folder(Path(folder).expanduser())
    opened = open_source(source, model_name, config, pretrained, revision)
    fused = getattr(converted.config.vision_config, "reparameterized", False)
    prepared = prepare_open_clip(opened, ema=ema, reparameterize=fused)
    comparison = FolderComparison(converted, prepared, set(GROUPS) - set(skip), pairs)
    report = VerificationReport(
        model=converted.path.resolve().name,
        architecture=type(converted.model).__name__,
        dtype=_name(comparison.stored_dtype),
        source=public_name(prepared.name),
        weights_file=prepared.weights.name,
        sha256=file_sha256(prepared.weights),
        settings={"pairs": pairs, "dtypes": [_name(dtype) for dtype in wanted], "skipped": sorted(skip)},
        versions=_versions(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        checks=tuple(comparison.checks(wanted)),
    )
    report.write(converted.path if output_dir is None else Path(output_dir).expanduser())
    return report


def _check_arguments(dtypes: Collection[str], skip: Collection[str], pairs: int) -> list[torch.dtype]:
    """The dtypes in the order of the report."""
    known = [DTYPES[name] for name in VERIFIED_DTYPES]
    if not dtypes or any(DTYPES.get(name) not in known for name in dtypes):
        raise ConversionError(
            f"dtypes must be some of {', '.join(VERIFIED_DTYPES)}, got {', '.join(dtypes) or 'none'}."
        )
    if unknown := sorted(set(skip) - set(SKIPPABLE)):
        raise ConversionError(f"skip may hold {', '.join(SKIPPABLE)}, got {', '.join(unknown)}.")
    if pairs < 2:
        raise ConversionError(f"pairs must be at least 2, so that there is something to tell apart, got {pairs}.")
    return [dtype for dtype in known if dtype in {DTYPES[name] for name in dtypes}]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _versions() -> dict[str, str]:
    package = import_module(PACKAGE)
    versions = {package.__name__: package.__version__}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    return versions
