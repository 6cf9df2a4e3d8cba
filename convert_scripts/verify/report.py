"""Reports of verifications, for people (Markdown) and for programs (JSON)."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..outputs import write_files


MARKDOWN_FILE = "verification.md"
JSON_FILE = "verification.json"
# Groups of comparisons in the order of the report: tensors with those that the conversion makes, processors, values
# that layers return in the order of the forward pass, embeddings, similarities and CoCa's predictions of words, greedy
# captions, losses, and the gradients of the one to train on.
GROUPS = (
    "weights",
    "pixels",
    "tokens",
    "intermediates",
    "features",
    "logits",
    "captions",
    "losses",
    "gradients",
)
RULES = (
    "Weights, tokens and captions are counted where they differ. Other differences are relative to the largest value "
    "of open_clip's in fp32. In half precision both models are measured against open_clip in fp32, in the Euclidean "
    "norm, and the bound is twice open_clip's own error and a quarter of the epsilon of the dtype. What consists of "
    "few numbers is also allowed twice the error of open_clip's that it inherits: similarities that of the features, "
    "losses that of the logits, gradients that of both."
)
# Failures listed in Markdown; JSON has them all.
MOST_FAILURES = 30


@dataclass(frozen=True)
class Check:
    """One comparison.

    Args:
        group: its kind, one of `GROUPS`.
        name: the value or file that was compared.
        difference: how far the two are apart; `None` where they were not compared.
        bound: largest accepted difference.
        dtype: dtype of the computation, `None` where there is only one.
        detail: a note; the reason where nothing was compared.
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

    @property
    def severity(self) -> float:
        """The difference relative to its bound: above 1 where it failed, -1 where nothing was compared."""
        if self.difference is None or self.bound is None:
            return -1.0
        return self.difference / self.bound if self.bound else 2.0 * (not self.passed)

    @property
    def measured(self) -> list[str]:
        """Difference and bound as text; none where nothing was compared."""
        if self.difference is None or self.bound is None:
            return []
        # Counts have a bound of 0.
        return [f"{value:.1e}" if self.bound else f"{value:g}" for value in (self.difference, self.bound)]

    def __str__(self) -> str:
        name = f"{self.name} ({self.dtype})" if self.dtype else self.name
        measured = ", at most ".join(self.measured) or "not compared"
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
        settings: of the verification.
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
        """The failure nearest to the inputs: a processor, or the first layer that differs, else the weights."""
        return min(self.failures, key=lambda check: check.group == "weights", default=None)

    def summary(self) -> list[tuple[str, list[Check], Check]]:
        """For each group and dtype its title, the checks with a result, and of all the one nearest to its bound."""
        rows: dict[str, list[Check]] = {}
        for check in self.checks:
            rows.setdefault(" ".join(filter(None, (check.group, check.dtype))), []).append(check)
        return [
            (title, [check for check in checks if check.passed is not None], max(checks, key=lambda c: c.severity))
            for title, checks in rows.items()
        ]

    def verdict(self) -> str:
        """The result in a sentence or two."""
        if self.passed:
            left_out = [title for title, compared, _ in self.summary() if not compared]
            rest = f" Not compared: {', '.join(left_out)}." if left_out else ""
            return (
                f"Passed: {sum(check.passed is True for check in self.checks)} comparisons within their bounds.{rest}"
            )
        first = self.first_difference
        where = "Nothing was compared." if first is None else f"The first that differs, of {first.group}: {first}"
        return f"Failed: {len(self.failures)} of {len(self.checks)} comparisons. {where}"

    def __str__(self) -> str:
        lines = [f"Verified {self.model} against {self.source}"]
        for title, compared, worst in self.summary():
            failed = sum(check.passed is False for check in compared)
            count = (
                f"{failed} of {len(compared)} FAILED; " if failed else f"{len(compared)} passed; " if compared else ""
            )
            lines.append(f"  {title:<22} {count}{worst}")
        return "\n".join([*lines, self.verdict()])

    def to_markdown(self) -> str:
        """A page about the verification."""
        facts = {
            "Model": f"{self.model} ({self.architecture}, {self.dtype})",
            "Checkpoint": self.source,
            "Weights": f"{self.weights_file}, SHA-256 `{self.sha256}`",
            "Versions": ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            "Settings": ", ".join(f"{name} {_words(value)}" for name, value in self.settings.items()),
            "Date": self.date,
        }
        rows = [
            [title, str(len(compared)), str(sum(check.passed is False for check in compared)), *_cells(worst)]
            for title, compared, worst in self.summary()
        ]
        lines = ["# Verification", "", f"**{_cell(self.verdict())}**", ""]
        lines += _table(["", ""], [[name, value] for name, value in facts.items()])
        lines += ["", RULES, ""]
        lines += _table(["", "Compared", "Failed", "Difference", "Bound", "Nearest to its bound"], rows)
        if self.failures:
            lines += ["", "## What differs", ""]
            lines += [f"- {check.group}: {_cell(str(check))}" for check in self.failures[:MOST_FAILURES]]
            if len(self.failures) > MOST_FAILURES:
                lines.append(f"- {len(self.failures) - MOST_FAILURES} more, in {JSON_FILE}")
        return "\n".join(lines) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON, which has no infinity: such a difference is the string `"inf"`."""
        first = self.first_difference
        checks = [
            {**vars(check), "difference": _json_number(check.difference), "passed": check.passed}
            for check in self.checks
        ]
        return {
            "passed": self.passed,
            "first_difference": None if first is None else {"name": first.name, "dtype": first.dtype},
            **vars(self),
            "checks": checks,
        }

    def write(self, folder: str | os.PathLike) -> tuple[Path, Path]:
        """Write `verification.md` and `verification.json` to a folder, made if need be; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        contents = {MARKDOWN_FILE: self.to_markdown(), JSON_FILE: json.dumps(self.to_dict(), indent=2) + "\n"}
        write_files(folder, contents)
        return folder / MARKDOWN_FILE, folder / JSON_FILE


def _cells(check: Check) -> list[str]:
    """Difference, bound and name of a check."""
    return [*check.measured, check.name] if check.measured else ["", "", f"not compared: {check.detail}"]


def _words(value: Any) -> str:
    return ", ".join(value) or "nothing" if isinstance(value, list) else str(value)


def _cell(text: str) -> str:
    """Text that stays on its line of Markdown, and in its cell."""
    return " ".join(text.split()).replace("|", "\\|")


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *([_cell(cell) for cell in row] for row in rows)]
    return ["|".join(["", *(f" {cell} " if cell else " " for cell in cells), ""]) for cells in lines]


def _json_number(value: float | None) -> float | str | None:
    return value if value is None or abs(value) < float("inf") else str(value)
