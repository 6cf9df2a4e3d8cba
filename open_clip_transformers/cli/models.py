"""`open-clip-transformers models`."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from .messages import UsageError, errors_as_messages
from .options import Json, Traceback
from .output import print_line, print_record


if TYPE_CHECKING:
    from ..convert_scripts.sources.architectures import ListedModel

HEADER = ("MODEL", "TAG", "VISION", "TEXT", "PARAMETERS", "IMAGE", "CONTEXT", "NEEDS")
NUMBERS = {"PARAMETERS", "IMAGE", "CONTEXT"}


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            help="Part of the name of an architecture or a tag, or a pattern such as 'coca*' for the whole."
        ),
    ] = None,
    tags: Annotated[
        bool, typer.Option("--tags/--no-tags", help="A line for each pretrained tag, or for each architecture.")
    ] = True,
    as_json: Json = False,
    traceback: Traceback = False,
):
    """List open_clip's architectures and their pretrained tags, which convert takes.

    Says what each is made of, and what it needs beside this package: timm for some vision towers, and the files of the
    tokenizers that are not CLIP's. Images are in pixels, or where they keep their shapes in the most patches of one.
    The columns are aligned, and - stands for nothing; --json tells more.
    """
    with errors_as_messages(traceback):
        from ..convert_scripts.sources.architectures import close_names, list_models

        listed = list(list_models(pattern, tags))
        if not listed:
            close = close_names(pattern or "")
            hint = f"Did you mean {', '.join(close)}? Without" if close else "Without"
            raise UsageError(f"No architecture and no tag matches {pattern!r}. {hint} a pattern all are listed.")
        if as_json:
            for model in listed:
                record = asdict(model)
                tag = record.pop("pretrained") or {"tag": None}
                print_record({"model": model.model, **tag, **record})
        else:
            _print_table(list(map(_row, listed)), leave_out=() if tags else ("TAG",))


def _row(model: "ListedModel") -> tuple[str, ...]:
    size = model.image_size
    image = str(size) if isinstance(size, int) else "x".join(map(str, size))
    needs = ["timm"] if model.timm_model else []
    needs += [f"tokenizer {model.tokenizer}"] if model.tokenizer else []
    return (
        model.model,
        model.pretrained.tag if model.pretrained else "-",
        model.vision_tower.removeprefix("open_clip_"),
        model.text_tower.removeprefix("open_clip_"),
        f"{model.parameters / 1e6:.1f}M",
        image if model.max_num_patches is None else f"{model.max_num_patches}-patches",
        str(model.context_length),
        ", ".join(needs) or "-",
    )


def _print_table(rows: list[tuple[str, ...]], leave_out: tuple[str, ...]):
    columns = [
        [cell.rjust(width) if name in NUMBERS else cell.ljust(width) for cell in (name, *cells)]
        for name, *cells in zip(HEADER, *rows)
        if name not in leave_out
        for width in [max(map(len, (name, *cells)))]
    ]
    for cells in zip(*columns):
        print_line("  ".join(cells).rstrip())
