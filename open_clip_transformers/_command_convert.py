"""`open-clip-transformers convert`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ._cli_messages import errors_as_messages, hide_progress_bars_in_logs
from ._cli_options import Dtype, Traceback


class Verify(str, Enum):
    auto = "auto"
    full = "full"
    structure = "structure"
    none = "none"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A folder with open_clip_config.json, a Hub id (org/name or org/name@revision), a weights file, or "
            "with --pretrained an architecture."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="The folder to write, new or empty.")],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="open_clip's name of the architecture, such as coca_ViT-L-14.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The architecture as a file like open_clip_config.json.")
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="TAG",
            help="open_clip's tag of the weights, as the command models lists them: downloads them for the "
            "architecture SOURCE, or, with --model, says what the weights in SOURCE are.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of the Hub repository.")
    ] = None,
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
    reparameterize: Annotated[
        bool,
        typer.Option(
            "--reparameterize", help="Fuse the training branches of a MobileCLIP image tower, for inference."
        ),
    ] = False,
    traceback: Traceback = False,
):
    """Convert an open_clip checkpoint to a folder that transformers loads.

    Prints what was read, decided and verified. The source is not changed; a conversion that fails writes nothing.
    """
    with errors_as_messages(traceback):
        from .convert_scripts.convert_open_clip import convert_open_clip_checkpoint

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
            reparameterize=reparameterize,
        )
        typer.echo(str(report))
