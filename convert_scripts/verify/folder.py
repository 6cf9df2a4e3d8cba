"""Verification of a converted folder by open_clip running the checkpoint, one model in memory at a time."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..checkpoint import LoadedCheckpoint, load_checkpoint
from ..common import PACKAGE, ConversionError, checks_types, dtype_name, listing, user_path
from ..hub.provenance import public_name, recorded_source
from ..sources.source import SourceOptions
from ..sources.weights import file_sha256
from ..write.folder import DTYPES, ConvertedFolder, read_converted_folder
from ..write.safetensors import same_bytes
from .compare import (
    BOUND,
    INFINITE,
    OURS,
    Key,
    Run,
    Values,
    captions_check,
    check_finite,
    fp32_checks,
    half_precision_checks,
    measure_errors,
    open_clip_library,
    run_model,
)
from .conversion import load_converted
from .processors import pixel_checks, token_checks
from .reference import MissingModelError, is_mammut, load_open_clip_model, require_open_clip, text_prefix
from .report import GROUPS, Check, VerificationReport
from .values import CaptionIds, intermediates_table, open_clip_captions, our_captions, verification_inputs


VERIFIED_DTYPES = ("float32", "bfloat16", "float16")
# Features and logits come with everything else.
SKIPPABLE = tuple(group for group in GROUPS if group not in ("features", "logits"))
LIBRARIES = ("open_clip_torch", "torch", "torchvision", "transformers", "timm")


@checks_types
def verify_folder(
    folder: str | os.PathLike,
    source: str | os.PathLike | None = None,
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
    """Compare a converted folder with open_clip running the checkpoint that it was made of.

    Writes `verification.md` and `verification.json`. Models run on the CPU, in eval mode also for gradients, on random
    images and texts that are always the same. In fp32 open_clip gets the values of the folder: of a conversion to half
    precision, the rounded ones. In half precision both models are cast as a whole, as by open_clip's
    `precision="pure_bf16"`. Captions are compared in fp32 alone: where two words are nearly as probable, rounding
    decides.

    Args:
        folder: a converted folder.
        source: the checkpoint; this and the next five as for `convert_open_clip_checkpoint`. By default the one that
            `conversion.json` names, with what was given of it then.
        model_name: open_clip's name of its architecture.
        config: its configuration.
        pretrained: open_clip's tag of it.
        revision: its branch, tag or commit on the Hub.
        ema: whether the averaged weights of a training checkpoint were taken.
        dtypes: dtypes to compute in, of `"float32"`, `"bfloat16"` and `"float16"`.
        skip: comparisons to leave out, of `"weights"`, `"pixels"`, `"tokens"`, `"intermediates"`, `"captions"`,
            `"losses"` and `"gradients"`. Without gradients, which need as much memory again as the weights, models
            that fill half of it can be verified.
        pairs: number of images and texts, at least 2.
        output_dir: folder of the report, by default the folder itself.

    Returns:
        The report, whose `passed` says whether everything is within its bound.

    Raises:
        ConversionError: open_clip is not installed or cannot run the model, the folder or the checkpoint cannot be
            read, or an argument is wrong.
        OSError: the report cannot be written.
    """
    wanted = _check_arguments(dtypes, skip, pairs)
    require_open_clip()
    converted = read_converted_folder(user_path(folder))
    if source is not None:
        options = SourceOptions(source, model_name, config, pretrained, revision, ema)
    elif model_name or config or pretrained or revision or ema:
        raise ConversionError("What is said of the source (such as --model, --config, --ema) goes with it: --against.")
    else:
        options = recorded_source(converted.path)
    fused = getattr(converted.config.vision_config, "reparameterized", False)
    checkpoint = load_checkpoint(replace(options, reparameterize=fused))
    comparison = FolderComparison(converted, checkpoint, set(GROUPS) - set(skip), pairs)
    report = VerificationReport(
        model=converted.path.resolve().name,
        architecture=type(converted.model).__name__,
        dtype=dtype_name(comparison.stored_dtype),
        source=public_name(checkpoint.source.name),
        weights_file=checkpoint.source.weights.name,
        sha256=file_sha256(checkpoint.source.weights),
        settings={"pairs": pairs, "dtypes": [dtype_name(dtype) for dtype in wanted], "skipped": sorted(skip)},
        versions=_versions(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        checks=tuple(comparison.checks(wanted)),
    )
    report.write(converted.path if output_dir is None else user_path(output_dir))
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


def _versions() -> dict[str, str]:
    package = import_module(PACKAGE)
    versions = {package.__name__: package.__version__}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    return versions


class FolderComparison:
    """The comparison of one folder with one checkpoint.

    Args:
        converted: the folder.
        checkpoint: the checkpoint.
        groups: the groups of comparisons that are wanted, of `verification_report.GROUPS`.
        pairs: number of images and texts.
    """

    def __init__(self, converted: ConvertedFolder, checkpoint: LoadedCheckpoint, groups: set[str], pairs: int):
        self.converted, self.source, self.plan = converted, checkpoint.source, checkpoint.plan
        # Of the model that open_clip builds, whatever the folder says.
        self.config = self.plan.model.config
        self.wanted = groups
        # Fused layers are for inference alone, and have no parameters in common with those that they were.
        is_fused = getattr(self.config.vision_config, "reparameterized", False)
        self.groups = groups - ({"gradients"} if is_fused else set())
        self.inputs = verification_inputs(self.config, pairs)

    @property
    def stored_dtype(self) -> torch.dtype:
        """Dtype of the weights in the folder, fp32 where there are several."""
        dtypes = {tensor.dtype for tensor in self.converted.tensors.values() if tensor.is_floating_point()}
        return dtypes.pop() if len(dtypes) == 1 else torch.float32

    def checks(self, dtypes: list[torch.dtype]) -> Iterator[Check]:
        """All comparisons in order, computed in each of `dtypes`.

        Raises:
            ConversionError: open_clip cannot run the model, or the checkpoint is damaged.
        """
        if "weights" in self.groups:
            yield self._weights_check()
        if "pixels" in self.groups:
            yield from pixel_checks(self.converted.path, self.source, self.config)
        if "tokens" in self.groups:
            yield from token_checks(self.converted.path, self.source)
        try:
            exact, captions = self._reference()
        except MissingModelError as error:
            yield from self._without_reference(str(error), dtypes)
            return
        for dtype in dtypes:
            is_fp32 = dtype == torch.float32
            yield from self._fp32_checks(exact, captions) if is_fp32 else self._half_precision_checks(exact, dtype)
            yield from self._left_out(exact, dtype)

    def _without_reference(self, reason: str, dtypes: list[torch.dtype]) -> Iterator[Check]:
        """Say of everything that open_clip would have to compute that it was not compared."""
        for dtype in dtypes:
            for group in ("intermediates", "features", "logits", "captions", "losses", "gradients"):
                is_wanted = group in self.wanted or group not in SKIPPABLE
                if is_wanted and (group != "captions" or dtype == torch.float32):
                    yield Check(group, group, dtype=dtype_name(dtype), detail=reason)

    def _left_out(self, exact: Values, dtype: torch.dtype) -> Iterator[Check]:
        for group in ("losses", "gradients"):
            if group in self.wanted and not any(key[0] == group for key in exact):
                no_vectors = "an image or a text has a vector for each of its tokens"
                reason = no_vectors if group in self.groups else "the folder's layers are fused, for inference alone"
                yield Check(group, group, dtype=dtype_name(dtype), detail=reason)

    def _weights_check(self) -> Check:
        tensors = self.converted.tensors
        expected = dict.fromkeys(self.plan.layout, False)
        for name, tensor in self.plan.converted(tensors):
            expected[name] = same_bytes(tensors[name].contiguous(), tensor)
        wrong = [name for name, same in expected.items() if not same] + [n for n in tensors if n not in expected]
        return Check("weights", f"{len(tensors)} tensors", len(wrong), 0, detail=listing(wrong, limit=5).strip())

    def _open_clip(self, dtype: torch.dtype) -> torch.nn.Module:
        return load_open_clip_model(self.source.model_cfg, self.plan, self.stored_dtype).to(dtype)

    def _run_open_clip(self, model: torch.nn.Module) -> Run:
        table = intermediates_table(self.config, text_prefix(model))
        return partial(run_model, open_clip_library(self.config), model, self.inputs, table, self.groups)

    def _ours(self, dtype: torch.dtype) -> torch.nn.Module:
        return load_converted(self.converted.path, type(self.converted.model), dtype)

    def _run_ours(self, model: torch.nn.Module) -> Run:
        # The paths of open_clip's modules do not matter here.
        return partial(run_model, OURS, model, self.inputs, intermediates_table(self.config, ""), self.groups)

    def _reference(self) -> tuple[Values, torch.Tensor | None]:
        """Compute open_clip's values in fp32, and a captioner's captions.

        Raises:
            MissingModelError: the installed open_clip has no such model.
            ConversionError: it cannot run the model, or the checkpoint is damaged.
        """
        exact: Values = {}

        def keep(key: Key, value: torch.Tensor):
            exact[key] = value.clone()

        captions = None
        try:
            model = self._open_clip(torch.float32)
            self._run_open_clip(model)(keep)
            if "captions" in self.groups and (hasattr(model, "text_decoder") or is_mammut(model)):
                ids = CaptionIds.of(self.config, self.converted.config)
                captions = open_clip_captions(model, self.inputs[0]["pixel_values"], ids)
        except MissingModelError:
            raise
        except Exception as error:  # whatever keeps open_clip from running this model
            raise ConversionError(
                f"There is nothing to compare with: open_clip cannot run this model ({error})"
            ) from error
        check_finite({name: value for (_, name), value in exact.items()}, "open_clip")
        return exact, captions

    def _fp32_checks(self, exact: Values, captions: torch.Tensor | None) -> list[Check]:
        try:
            model = self._ours(torch.float32)
            checks = list(fp32_checks(exact, self._run_ours(model)))
            if captions is not None:
                checks.append(captions_check(captions, our_captions(model, self.inputs[0]["pixel_values"])))
        except Exception as error:  # a folder is wrong in many ways
            return [_failure(error, torch.float32)]
        return checks

    def _half_precision_checks(self, exact: Values, dtype: torch.dtype) -> list[Check]:
        try:
            theirs = measure_errors(exact, self._run_open_clip(self._open_clip(dtype)))
        except Exception as error:  # torch and open_clip cannot compute everything in half precision
            reason = f"open_clip cannot run: {type(error).__name__}: {error}"
            return [Check("features", "forward pass", dtype=dtype_name(dtype), detail=reason)]
        try:
            ours = measure_errors(exact, self._run_ours(self._ours(dtype)))
        except Exception as error:
            return [_failure(error, dtype)]
        return list(half_precision_checks(theirs, ours, dtype))


def _failure(error: Exception, dtype: torch.dtype) -> Check:
    return Check("features", "forward pass", INFINITE, BOUND, dtype_name(dtype), f"{type(error).__name__}: {error}")
