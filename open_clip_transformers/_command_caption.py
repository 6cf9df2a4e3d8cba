"""`open-clip-transformers caption`."""

from typing import Annotated

import typer

from ._cli_inputs import find_images
from ._cli_messages import Failures, errors_as_messages
from ._cli_options import (
    DEFAULT_WORKERS,
    BatchSize,
    Device,
    Dtype,
    Images,
    Json,
    Model,
    ModelDtype,
    Revision,
    Traceback,
    Workers,
)


Groups = Annotated[int | None, typer.Option(min=1, help="Groups of beams; open_clip's default is 3, of 6 beams.")]
Penalty = Annotated[float | None, typer.Option(min=0, help="What a word costs that an earlier group chose.")]


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
    workers: Workers = DEFAULT_WORKERS,
    revision: Revision = None,
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
            revision=revision,
            device=device,
            dtype=dtype.value,
            batch_size=batch_size,
            workers=workers,
            as_json=as_json,
            failures=failures,
        )
        raise typer.Exit(failures.exit_code())
