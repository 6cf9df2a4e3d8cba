"""The command line: `open-clip-transformers convert | caption | classify | embed`.

Only what every call needs is imported here; torch and transformers come with the command that works with them, so that
`--help` and usage errors are quick. Exit codes: 0 for success, 1 where something failed, 2 where what was asked for
cannot be done.
"""

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from ._cli_inputs import find_images, read_lines
from ._cli_messages import Failures, UsageError, errors_as_messages, hide_progress_bars_in_logs
from ._cli_output import check_embedding_file


app = typer.Typer(
    help="open_clip's CLIP and CoCa models as transformers models.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Without markup, messages stay lines as they are, wherever they go.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Verify(str, Enum):
    auto = "auto"
    full = "full"
    structure = "structure"
    none = "none"


IMAGES_HELP = (
    "Files, folders (searched with their subfolders), patterns such as 'scans/**/*.png', http(s) URLs, or - for lines "
    "of these on standard input."
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A converted folder, or a Hub id of one.")]
Images = Annotated[list[str], typer.Argument(metavar="IMAGE", help=IMAGES_HELP)]
BatchSize = Annotated[int, typer.Option(min=1, help="Images that the model works on at once.")]
Device = Annotated[str, typer.Option(help="Such as cpu or cuda:1; auto is this machine's accelerator, if it has one.")]
ModelDtype = Annotated[Dtype, typer.Option(help="What to compute in; auto is what the model was saved in.")]
Groups = Annotated[int | None, typer.Option(min=1, help="Groups of beams; open_clip's default is 3, of 6 beams.")]
Penalty = Annotated[float | None, typer.Option(min=0, help="What a word costs that an earlier group chose.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error was raised.")]


def _print_version(wanted: bool):
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
):
    pass


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A folder with open_clip_config.json, a Hub id, or a weights file.")],
    output: Annotated[Path, typer.Argument(help="The folder to write, new or empty.")],
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="open_clip's name of the architecture, such as coca_ViT-L-14.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The architecture as a file like open_clip_config.json.")
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
            with_processor=processor,
            dtype=None if dtype == Dtype.auto else dtype.value,
            max_shard_size=max_shard_size,
            verify=verify.value,
        )
        typer.echo(str(report))


@app.command()
def caption(
    model: Model,
    images: Images,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beams to search with.")] = None,
    num_beam_groups: Groups = None,
    diversity_penalty: Penalty = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from that many most probable words.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Sample from the words that make up this probability.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Sample; above 1 more evenly, below 1 less.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest caption in tokens, without the prompt.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="How every caption starts.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    dtype: ModelDtype = Dtype.auto,
    as_json: Json = False,
    traceback: Traceback = False,
):
    """Caption images with a CoCa.

    Prints a line `image<TAB>caption` for each image, or with --json {"image": ..., "caption": ...}, in the order of
    the images. Takes the most probable words unless told to search or to sample. Images that cannot be read are
    reported and left out; the exit code is then 1.
    """
    with errors_as_messages(traceback):
        settings = {
            "num_beams": num_beams,
            "num_beam_groups": num_beam_groups,
            "diversity_penalty": diversity_penalty,
            "top_k": top_k,
            "top_p": top_p,
            "temperature": temperature,
            "max_new_tokens": max_new_tokens,
        }
        failures = Failures()
        names = find_images(images, failures)

        from ._cli_caption import caption_images

        caption_images(
            names,
            settings,
            prompt=prompt,
            seed=seed,
            model_name=model,
            device=device,
            dtype=dtype.value,
            batch_size=batch_size,
            as_json=as_json,
            failures=failures,
        )
        raise typer.Exit(failures.exit_code())


@app.command()
def classify(
    model: Model,
    images: Images,
    labels: Annotated[
        list[str] | None, typer.Option(help="Labels with commas between them; may be given several times.")
    ] = None,
    labels_file: Annotated[Path | None, typer.Option(help="A text file with a label on each line.")] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A text with {} for the label, by default 'a photo of a {}.'; several are averaged."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels to print for each image.")] = 1,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    dtype: ModelDtype = Dtype.auto,
    as_json: Json = False,
    traceback: Traceback = False,
):
    """Classify images with labels of your own (zero-shot).

    Prints a line `image<TAB>label<TAB>probability` for each of the most probable labels of an image, or with --json
    one {"image": ..., "labels": [{"label": ..., "score": ...}]} for each image. The probabilities of an image add up
    to 1 over the labels; those of a SigLIP are independent of each other. Images that cannot be read are reported and
    left out; the exit code is then 1.
    """
    with errors_as_messages(traceback):
        failures = Failures()
        all_labels = _split_labels(labels or [], labels_file)
        templates = template or ["a photo of a {}."]
        if lacking := [text for text in templates if "{}" not in text]:
            raise UsageError(f"--template {lacking[0]!r} has no {{}} for the label, as in 'a photo of a {{}}.'")
        names = find_images(images, failures)

        from ._cli_embeddings import classify_images

        classify_images(
            names,
            all_labels,
            templates,
            model_name=model,
            device=device,
            dtype=dtype.value,
            batch_size=batch_size,
            top=top,
            as_json=as_json,
            failures=failures,
        )
        raise typer.Exit(failures.exit_code())


def _split_labels(options: list[str], file: Path | None) -> list[str]:
    labels = [label.strip() for option in options for label in option.split(",")]
    if file is not None:
        labels += read_lines(file)
    labels = list(dict.fromkeys(filter(None, labels)))
    if not labels:
        raise UsageError('There are no labels to choose from: give --labels "cat,dog" or --labels-file FILE.')
    return labels


@app.command()
def embed(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="A .safetensors or .npy file to write.")],
    inputs: Annotated[list[str] | None, typer.Argument(metavar="IMAGE", help=IMAGES_HELP)] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text to embed; may be given several times.")] = None,
    texts_file: Annotated[Path | None, typer.Option(help="A text file with a text to embed on each line.")] = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    dtype: ModelDtype = Dtype.auto,
    traceback: Traceback = False,
):
    """Embed images and texts as vectors of length 1.

    A .safetensors file gets float32 tensors image_embeds and text_embeds of shape (inputs, projection_dim), and in its
    metadata JSON lists, images and texts, of what the rows are. A .npy file gets one of the arrays. Images that cannot
    be read are reported and have no row; the exit code is then 1.
    """
    with errors_as_messages(traceback):
        failures = Failures()
        texts = [*(text or []), *(read_lines(texts_file) if texts_file else [])]
        if not inputs and not texts:
            raise UsageError("There is nothing to embed: give images, --text or --texts-file.")
        check_embedding_file(output, bool(inputs) + bool(texts))
        names = find_images(inputs or [], failures)

        from ._cli_embeddings import embed_inputs

        embed_inputs(
            names,
            texts,
            output,
            model_name=model,
            device=device,
            dtype=dtype.value,
            batch_size=batch_size,
            failures=failures,
        )
        raise typer.Exit(failures.exit_code())


def main():
    """Runs the command line on `sys.argv`."""
    # Names of files, and captions, may hold what the terminal's encoding cannot show.
    sys.stdout.reconfigure(errors="backslashreplace")
    app(prog_name="open-clip-transformers")


if __name__ == "__main__":
    main()
