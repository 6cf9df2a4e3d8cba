"""`open-clip-transformers convert`."""

import shlex
from enum import Enum
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .messages import errors_as_messages, hide_progress_bars_in_logs
from .options import (
    SOURCE_HELP,
    ConfigFile,
    Dtype,
    Ema,
    ModelName,
    PretrainedTag,
    Revision,
    Traceback,
    Verify,
    VerifyConversion,
)
from .output import print_text


if TYPE_CHECKING:
    from ..convert_scripts.convert_open_clip import ConversionReport


class Target(str, Enum):
    ours = "ours"
    native = "native"


class Tower(str, Enum):
    both = "both"
    vision = "vision"
    text = "text"


Bundle = Annotated[
    bool, typer.Option("--bundle", help="Also write the code that people need who do not have this package.")
]


# What to do with a model of each kind -> arguments behind its folder.
NEXT = {
    **dict.fromkeys(("open_clip_coca", "open_clip_mammut"), ("caption", "IMAGE")),
    "open_clip": ("classify", "IMAGE --labels 'a cat, a dog'"),
    "open_clip_siglip": ("classify", "IMAGE --labels 'a cat, a dog'"),
}


# Classes that vLLM's registry of models has.
SERVED_BY_VLLM = ("CLIPModel", "SiglipModel")


def _next_steps(report: "ConversionReport", has_processor: bool) -> list[str]:
    """Lines to type with the folder that was written."""
    folder = shlex.quote(str(report.output_dir))
    if has_processor and report.model_type in NEXT:
        command, rest = NEXT[report.model_type]
        return [
            f"open-clip-transformers {command} {folder} {rest}",
            f"open-clip-transformers card {folder} --model-id ORG/NAME",
        ]
    if has_processor and report.architecture in SERVED_BY_VLLM:
        return [f"vllm serve {folder} --runner pooling"]
    code = f"from transformers import AutoModel; AutoModel.from_pretrained({str(report.output_dir)!r})"
    own = "import open_clip_transformers; " if report.model_type.startswith("open_clip") else ""
    return [f"python -c {shlex.quote(own + code)}"]


def convert(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    output: Annotated[Path, typer.Argument(help="The folder to write, new or empty.")],
    model: ModelName = None,
    config: ConfigFile = None,
    pretrained: PretrainedTag = None,
    revision: Revision = None,
    dtype: Annotated[Dtype, typer.Option(help="What to write; auto is the checkpoint's.")] = Dtype.auto,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest weights file.")] = "5GB",
    verify: VerifyConversion = Verify.auto,
    processor: Annotated[
        bool, typer.Option("--processor/--no-processor", help="Also write the image processor and the tokenizer.")
    ] = True,
    ema: Ema = False,
    reparameterize: Annotated[
        bool,
        typer.Option(
            "--reparameterize", help="Fuse the training branches of a MobileCLIP image tower, for inference."
        ),
    ] = False,
    target: Annotated[
        Target,
        typer.Option(
            help="native writes transformers' own CLIPModel, SiglipModel or MetaClip2Model, where the architecture is "
            "the same, for libraries that know these alone, such as vLLM."
        ),
    ] = Target.ours,
    tower: Annotated[Tower, typer.Option(help="Write one tower alone, with its projection.")] = Tower.both,
    bundle: Bundle = False,
    traceback: Traceback = False,
):
    """Convert an open_clip checkpoint to a folder that transformers loads.

    Prints what was read, decided and verified, and what to type next. The source is not changed; a conversion that
    fails writes nothing.
    """
    with errors_as_messages(traceback):
        from ..convert_scripts.convert_open_clip import convert_open_clip_checkpoint

        hide_progress_bars_in_logs()
        report = convert_open_clip_checkpoint(
            source,
            output,
            model_name=model,
            config=config,
            pretrained=pretrained,
            revision=revision,
            with_processor=processor,
            dtype=None if dtype == Dtype.auto else dtype.value,
            max_shard_size=max_shard_size,
            verify=verify.value,
            ema=ema,
            reparameterize=reparameterize,
            target=target.value,
            tower=None if tower == Tower.both else tower.value,
            bundle=bundle,
        )
        print_text(report)
        if report.model_type in NEXT:
            print_text(
                f"  {'serving':<12} not by vLLM, which does not know {report.architecture}: see --target native"
            )
        for title, line in zip_longest(["next"], _next_steps(report, processor), fillvalue=""):
            print_text(f"  {title:<12} {line}")
