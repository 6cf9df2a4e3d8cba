"""What a verification found, for people (Markdown) and for programs (JSON)."""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


MARKDOWN_FILE = "verification.md"
JSON_FILE = "verification.json"
# What is compared, in the order of the report.
GROUPS = {
    "weights": "tensors of the folder, bit for bit what the conversion makes of the checkpoint's",
    "pixels": "image processor",
    "tokens": "tokenizer",
    "intermediates": "what layers return, in the order of the forward pass",
    "features": "embeddings of images and texts, not normalised",
    "logits": "scaled similarities, and CoCa's predictions of words",
    "captions": "greedy captions",
    "losses": "contrastive loss, and CoCa's caption loss",
    "gradients": "of the loss",
}
# By which a port is debugged: the first of these that differs is where to look.
IN_FORWARD_ORDER = ("pixels", "tokens", "intermediates", "features", "logits", "captions", "losses", "gradients")


@dataclass(frozen=True)
class Check:
    """One comparison.

    Args:
        group: what kind it is of, a key of `GROUPS`.
        name: what was compared.
        difference: how far the two are apart; `None` where they were not compared.
        bound: largest accepted difference.
        dtype: dtype of the computation, `None` where there is only one.
        detail: what else there is to say; the reason where nothing was compared.
    """

    group: str
    name: str
    difference: float | None = None
    bound: float | None = None
    dtype: str | None = None
    detail: str = ""

    @property
    def passed(self) -> bool | None:
        """`None` where nothing was compared. NaN does not pass."""
        if self.difference is None or self.bound is None:
            return None
        return self.difference <= self.bound

    def __str__(self) -> str:
        name = f"{self.name} ({self.dtype})" if self.dtype else self.name
        measured = f"{self.difference:.1e}, at most {self.bound:.1e}" if self.passed is not None else "not compared"
        return f"{name}: {measured}{f'; {self.detail}' if self.detail else ''}"


@dataclass(frozen=True)
class VerificationReport:
    """Result of a verification; `str()` of it is meant for people.

    Args:
        model: name of the folder.
        architecture: name of our model class.
        source: name of the checkpoint.
        weights_file: name of its weights file.
        sha256: SHA-256 of that file, in hexadecimal.
        dtype: of the tensors in the folder.
        settings: what was asked for.
        versions: library -> version.
        date: of the verification, in UTC.
        checks: everything that was compared, in the order of `GROUPS` for each dtype.
    """

    model: str
    architecture: str
    source: str
    weights_file: str
    sha256: str
    dtype: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    date: str
    checks: tuple[Check, ...]

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.passed is False]

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and something was compared."""
        return not self.failures and any(check.passed for check in self.checks)

    @property
    def first_difference(self) -> Check | None:
        """The failure nearest to the inputs: a processor, or the first layer that differs."""
        order = {group: rank for rank, group in enumerate(IN_FORWARD_ORDER)}
        failures = [check for check in self.failures if check.group in order]
        # fp32 comes first, and is the clearest; the order of layers is kept.
        return min(failures, key=lambda check: check.group not in ("pixels", "tokens"), default=None)

    def write(self, folder: str | os.PathLike) -> tuple[Path, Path]:
        """Writes `verification.md` and `verification.json` to a folder, made if need be; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        contents = {MARKDOWN_FILE: self.to_markdown(), JSON_FILE: json.dumps(self.to_dict(), indent=2) + "\n"}
        for name, content in contents.items():
            temporary = folder / f".{name}.{uuid.uuid4().hex[:8]}"
            try:
                temporary.write_text(content, encoding="utf-8")
                temporary.replace(folder / name)
            finally:
                temporary.unlink(missing_ok=True)
        return folder / MARKDOWN_FILE, folder / JSON_FILE

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON, which has no infinity: such a difference is the string `"inf"`."""
        checks = [
            {**vars(check), "difference": _json_number(check.difference), "passed": check.passed}
            for check in self.checks
        ]
        first = self.first_difference
        return {
            "passed": self.passed,
            "first_difference": None if first is None else {"name": first.name, "dtype": first.dtype},
            **{name: value for name, value in vars(self).items() if name != "checks"},
            "checks": checks,
        }

    def summary(self) -> list[tuple[str | None, str, int, int, Check]]:
        """(dtype, group, number compared, number that failed, the check nearest to its bound or beyond)."""
        rows = {}
        for check in self.checks:
            rows.setdefault((check.dtype, check.group), []).append(check)
        return [
            (
                dtype,
                group,
                sum(check.passed is not None for check in checks),
                sum(check.passed is False for check in checks),
                max(checks, key=_severity),
            )
            for (dtype, group), checks in rows.items()
        ]

    def to_markdown(self) -> str:
        """A page about the verification."""
        facts = {
            "Model": f"{self.model} ({self.architecture}, {self.dtype})",
            "Checkpoint": self.source,
            "Weights": f"{self.weights_file}, SHA-256 `{self.sha256}`",
            "Versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            "Settings": ", ".join(f"{name}: {value}" for name, value in self.settings.items()),
            "Date": self.date,
        }
        lines = ["# Verification", "", f"**{self._verdict()}**", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in facts.items()]
        lines += [
            "",
            *RULES,
            "",
            "| | Compared | Failed | Largest difference | Bound | Of |",
            "|---|---|---|---|---|---|",
        ]
        for dtype, group, compared, failed, worst in self.summary():
            title = f"{group}, {dtype}" if dtype else group
            if not compared:
                lines.append(f"| {title} | not compared | | | | {worst.detail} |")
                continue
            lines.append(
                f"| {title} | {compared} | {failed} | {worst.difference:.1e} | {worst.bound:.1e} | {worst.name} |"
            )
        if self.failures:
            lines += ["", "## What differs", "", *(f"- {check.group}: {check}" for check in self.failures)]
        return "\n".join(lines) + "\n"

    def _verdict(self) -> str:
        if self.passed:
            return f"Passed: {sum(check.passed is True for check in self.checks)} comparisons within their bounds."
        first = self.first_difference
        where = "" if first is None else f" The first that differs: {first.group}, {first}."
        return f"Failed: {len(self.failures)} comparisons.{where}"

    def __str__(self) -> str:
        lines = [f"Verified {self.model} against {self.source}"]
        for dtype, group, compared, failed, worst in self.summary():
            title = f"{group} {dtype}" if dtype else group
            if not compared:
                lines.append(f"  {title:<22} not compared: {worst.detail}")
                continue
            verdict = f"{failed} of {compared} FAILED" if failed else f"{compared} passed"
            lines.append(f"  {title:<22} {verdict}; {worst}")
        return "\n".join([*lines, self._verdict()])


RULES = (
    "Differences in fp32 are relative to the largest value of open_clip's. In half precision, both are measured "
    "against open_clip in fp32, and the bound is twice open_clip's own error, plus a quarter of the dtype's epsilon; "
    "a loss is also allowed the error of open_clip's logits.",
)


def _severity(check: Check) -> float:
    """How near a check is to its bound, above 1 where it failed."""
    if check.passed is None:
        return -1.0
    return check.difference / check.bound if check.bound else float(check.passed is False) * check.difference


def _json_number(value: float | None) -> float | str | None:
    return value if value is None or abs(value) < float("inf") else str(value)
