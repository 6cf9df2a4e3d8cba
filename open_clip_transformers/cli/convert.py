"""`open-clip-transformers convert`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .messages import errors_as_messages, hide_progress_bars_in_logs
from .options import SOURCE_HELP, ConfigFile, Dtype, Ema, ModelName, PretrainedTag, Revision, Traceback, Verify
from .output import print_text


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


def convert(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    output: Annotated[Path, typer.Argument(help="The folder to write, new or empty.")],
    model: ModelName = None,
    config: ConfigFile = None,
    pretrained: PretrainedTag = None,
    revision: Revision = None,
    dtype: Annotated[Dtype, typer.Option(help="What to write; auto is the checkpoint's.")] = Dtype.auto,
    max_shard_size: Annotated[str, typer.Option(metavar="SIZE", help="Largest weights file.")] = "5GB",
    verify: Annotated[
        Verify,
        typer.Option(
            help="full compares outputs with open_clip's, structure the tensors alone; auto is full where open_clip "
            "is installed."
        ),
    ] = Verify.auto,
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
            "the same, for libraries that know these alone."
        ),
    ] = Target.ours,
    tower: Annotated[Tower, typer.Option(help="Write one tower alone, with its projection.")] = Tower.both,
    bundle: Bundle = False,
    traceback: Traceback = False,
):
    """Convert an open_clip checkpoint to a folder that transformers loads.

    Prints what was read, decided and verified. The source is not changed; a conversion that fails writes nothing.
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
