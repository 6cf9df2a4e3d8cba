"""All comparisons of a converted folder with open_clip's model of the checkpoint, one model in memory at a time."""

from collections.abc import Iterator
from functools import partial

import torch

from .checkpoint import PreparedOpenClip
from .common import ConversionError, listing
from .compare_captions import CaptionIds, captions_check, open_clip_captions, our_captions
from .compare_intermediates import intermediates_table
from .converted_folder import ConvertedFolder
from .verify.compare import (
    INFINITE,
    OURS,
    Key,
    Run,
    Values,
    fp32_checks,
    half_precision_checks,
    measure_errors,
    open_clip_library,
    run_model,
)
from .verify.processors import pixel_checks, token_checks
from .verify.reference import load_open_clip_model, text_prefix
from .verify.report import Check
from .verify.values import BOUND, load_converted, verification_inputs
from .write.safetensors import same_bytes


class FolderComparison:
    """Compares one folder with one checkpoint.

    Args:
        converted: the folder.
        prepared: the checkpoint.
        groups: the groups of comparisons that are wanted, of `verification_report.GROUPS`.
        pairs: number of images and texts.
    """

    def __init__(self, converted: ConvertedFolder, prepared: PreparedOpenClip, groups: set[str], pairs: int):
        self.converted, self.source, self.plan = converted, prepared.source, prepared.plan
        # What open_clip builds, whatever the folder says.
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
        exact, captions = self._reference()
        for dtype in dtypes:
            is_fp32 = dtype == torch.float32
            yield from self._fp32_checks(exact, captions) if is_fp32 else self._half_precision_checks(exact, dtype)
            yield from self._left_out(exact, dtype)

    def _left_out(self, exact: Values, dtype: torch.dtype) -> Iterator[Check]:
        for group in ("losses", "gradients"):
            if group in self.wanted and not any(key[0] == group for key in exact):
                no_vectors = "an image or a text has a vector for each of its tokens"
                reason = no_vectors if group in self.groups else "the folder's layers are fused, for inference alone"
                yield Check(group, group, dtype=_name(dtype), detail=reason)

    def _weights_check(self) -> Check:
        tensors = self.converted.tensors
        expected = dict.fromkeys(self.plan.shapes, False)
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
        """open_clip's values in fp32, and CoCa's captions."""
        exact: Values = {}

        def keep(key: Key, value: torch.Tensor):
            exact[key] = value.clone()

        captions = None
        try:
            model = self._open_clip(torch.float32)
            self._run_open_clip(model)(keep)
            if "captions" in self.groups and hasattr(model, "text_decoder"):
                captions = open_clip_captions(model, self.inputs[0], CaptionIds.of(self.config, self.converted.config))
        except Exception as error:  # whatever keeps open_clip from running this model
            raise ConversionError(
                f"There is nothing to compare with: open_clip cannot run this model ({error})"
            ) from error
        infinite = [name for (_, name), value in exact.items() if not value.isfinite().all()]
        if infinite:
            raise ConversionError(
                f"The checkpoint is damaged: with it, open_clip's own values are not finite:{listing(infinite)}"
            )
        return exact, captions

    def _fp32_checks(self, exact: Values, captions: torch.Tensor | None) -> list[Check]:
        try:
            model = self._ours(torch.float32)
            checks = list(fp32_checks(exact, self._run_ours(model)))
            if captions is not None:
                checks.append(captions_check(captions, our_captions(model, self.inputs[0])))
        except Exception as error:  # a folder is wrong in many ways
            return [_failure(error, torch.float32)]
        return checks

    def _half_precision_checks(self, exact: Values, dtype: torch.dtype) -> list[Check]:
        try:
            theirs = measure_errors(exact, self._run_open_clip(self._open_clip(dtype)))
        except Exception as error:  # torch and open_clip cannot compute everything in half precision
            reason = f"open_clip cannot run: {type(error).__name__}: {error}"
            return [Check("features", "forward pass", dtype=_name(dtype), detail=reason)]
        try:
            ours = measure_errors(exact, self._run_ours(self._ours(dtype)))
        except Exception as error:
            return [_failure(error, dtype)]
        return list(half_precision_checks(theirs, ours, dtype))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _failure(error: Exception, dtype: torch.dtype) -> Check:
    return Check("features", "forward pass", INFINITE, BOUND, _name(dtype), f"{type(error).__name__}: {error}")
