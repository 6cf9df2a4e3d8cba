"""What a conversion tells about itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .verify.conversion import BOUND, Verification


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
        notes: what else was decided.
        verification: what was verified and how.
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
        return "\n".join(lines + verification_lines(self.verification))


def verification_lines(verification: Verification) -> list[str]:
    """What was verified, as the last lines of a report."""
    if verification.mode == "full":
        return [
            f"  verified     against {verification.detail}, relative differences (at most {BOUND:.0e}):",
            *(f"    {name:<16} {value:.1e}" for name, value in verification.differences.items()),
        ]
    if verification.mode == "structure":
        return [f"  verified     structure only: {verification.detail}"]
    return ["  verified     nothing"]
