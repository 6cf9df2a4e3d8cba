"""`open-clip-transformers caption`."""

import zlib
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from .data import (
    OUTPUT_HELP,
    DataOptions,
    check_folder,
    find_data,
    with_data_options,
    work_on_shards,
)
from .images import num_images, read_batches
from .messages import Failures, UsageError, errors_as_messages
from .options import (
    Images,
    Model,
)
from .output import print_columns, print_record


if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from ..datasets.shards import Sample, Shard

SAMPLING = ("top_k", "top_p", "temperature")

Groups = Annotated[int | None, typer.Option(min=1, help="Groups of beams; open_clip's default is 3, of 6 beams.")]
Penalty = Annotated[float | None, typer.Option(min=0, help="What a word costs that an earlier group chose.")]
Temperature = Annotated[float | None, typer.Option(min=0, help="Sample; above 1 more evenly, below 1 less.")]
Length = Annotated[int | None, typer.Option(min=1, help="Longest caption in tokens, without the prompt.")]


@with_data_options
def caption(
    name: Model,
    images: Images,
    data: DataOptions,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="FOLDER", help=OUTPUT_HELP)] = None,
    num_beams: Annotated[int | None, typer.Option(min=1, help="Beams to search with.")] = None,
    num_beam_groups: Groups = None,
    diversity_penalty: Penalty = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample from that many most probable words.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Sample from the words that make up this probability.")
    ] = None,
    temperature: Temperature = None,
    max_new_tokens: Length = None,
    prompt: Annotated[str | None, typer.Option(help="How every caption starts.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
):
    """Caption images with a CoCa or a MaMMUT.

    Prints a line `image<TAB>caption` for each image, or with --json {"image": ..., "caption": ...}, in the order of
    the images. Takes the most probable words unless told to search or to sample. Images that cannot be read are
    reported and left out; the exit code is then 1.

    With --output, a folder gets a parquet file for each shard of the images, with a row for each image in its order:
    `key`, `shard`, `caption`, and `error` for those that cannot be read; --json prints a summary at the end.
    """
    with errors_as_messages(data.traceback):
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
        folder = check_folder(output, data)
        shards = find_data(images, failures, data.fields(), data.shard_size)
        check_generation(settings)
        load = partial(load_captioner, settings, prompt, seed, name, data.revision, data.dtype.value)
        if folder is not None:
            work_on_shards(
                "caption",
                load,
                shards,
                folder,
                ("caption",),
                {"prompt": prompt, "seed": seed, **settings},
                name=name,
                data=data,
                failures=failures,
            )

        from transformers import set_seed

        from ..acceleration import optimize_for_inference

        captioner = load(data.device)
        if seed is not None:
            set_seed(seed)
        if num_images(shards) > data.batch_size:  # measuring takes about as long as it saves in one batch
            optimize_for_inference(captioner.model)
        for batch, pixels in read_batches(shards, captioner.processor, data.batch_size, data.workers, failures):
            for sample, text in zip(batch, captioner.captions(pixels)):
                if data.as_json:
                    print_record({"image": sample.key, "caption": text})
                else:
                    print_columns(sample.key, text)
        raise typer.Exit(failures.exit_code())


def check_generation(settings: dict):
    """Raise `UsageError` where arguments of `generate`, `None` where not given, contradict each other."""
    beams, groups = settings["num_beams"] or 1, settings["num_beam_groups"] or 1
    penalty = settings["diversity_penalty"]
    samples = [f"--{name.replace('_', '-')}" for name in SAMPLING if settings[name] is not None]
    if settings["temperature"] == 0:
        raise UsageError("--temperature must be above 0; without it the most probable words are taken.")
    if groups > 1 and (beams % groups or beams == 1):
        raise UsageError(
            f"--num-beams must be a multiple of --num-beam-groups, got {beams} and {groups}: open_clip's default is 6 "
            "and 3."
        )
    if groups > 1 and samples:
        raise UsageError(f"Groups of beams do not sample: leave out --num-beam-groups or {', '.join(samples)}.")
    if penalty and groups == 1:
        raise UsageError("--diversity-penalty acts between groups of beams: give --num-beam-groups too.")


def _complete_settings(settings: dict, model: "PreTrainedModel", prompt_length: int) -> dict:
    """Drop settings that are not given, sample where it was asked for, and limit the length."""
    given = {name: value for name, value in settings.items() if value is not None}
    sampling = {"do_sample": True} if given.keys() & set(SAMPLING) else {}
    return {**given, **sampling, **fit_length(model, given.get("max_new_tokens"), prompt_length)}


def _encode_prompt(processor: "ProcessorMixin", prompt: str) -> "torch.Tensor":
    try:
        return processor(text=prompt, add_eos=False, return_tensors="pt").input_ids
    except ValueError as error:
        raise UsageError(f"--prompt cannot be continued. {error}") from error


def fit_length(model: "PreTrainedModel", max_new_tokens: int | None, prompt_length: int) -> dict[str, int]:
    """`max_new_tokens` for `generate`: the one asked for, else the model's own as far as there are positions.

    Args:
        prompt_length: tokens of the prompt, its start of text included.

    Raises:
        UsageError: the request does not fit in the model's positions.
    """
    limit = model.config.max_position_embeddings
    free = limit - prompt_length
    if free < 1:
        raise UsageError(f"--prompt has {prompt_length} tokens and leaves no room in the model's {limit}: shorten it.")
    if max_new_tokens is None:
        own = model.generation_config
        max_new_tokens = min(own.max_new_tokens or (own.max_length or limit) - 1, free)
    if max_new_tokens > free:
        raise UsageError(
            f"--max-new-tokens {max_new_tokens} does not fit: the model has {limit} positions, of which the start of "
            f"text and the prompt take {prompt_length}. Give at most {free}."
        )
    return {"max_new_tokens": max_new_tokens}


class Captioner:
    """Captions images.

    Args:
        prompt_ids: token ids (1, tokens) that every caption starts with, if any.
        settings: arguments of `generate`.
        seed: makes the samples of each batch of a shard repeatable.
    """

    types = {"caption": "string"}

    def __init__(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        prompt_ids: "torch.Tensor | None",
        settings: dict,
        seed: int,
    ):
        self.model, self.processor, self.image_processor = model, processor, processor.image_processor
        self.prompt_ids, self.settings, self.seed = prompt_ids, settings, seed
        # Samples are drawn from one generator of random numbers, batch after batch.
        self.concurrent = model.device.type == "cpu" and not settings.get(
            "do_sample", model.generation_config.do_sample
        )

    def __call__(
        self, images: "dict[str, torch.Tensor]", samples: "list[Sample]", shard: "Shard"
    ) -> dict[str, list[str]]:
        from transformers import set_seed

        if not self.concurrent:
            set_seed((self.seed + zlib.crc32(f"{shard.name} {samples[0].key}".encode())) % 2**32)
        return {"caption": self.captions(images)}

    def captions(self, images: "dict[str, torch.Tensor]") -> list[str]:
        """Caption images, as the model takes them by name."""
        import torch
        from transformers import BatchFeature

        settings, model = self.settings, self.model
        if self.prompt_ids is not None:
            settings = {**settings, "input_ids": self.prompt_ids.expand(len(images["pixel_values"]), -1)}
        with torch.inference_mode():
            outputs = model.generate(**BatchFeature(images).to(model.device, model.dtype), **settings)
        return self.processor.batch_decode(outputs, skip_special_tokens=True)


def load_captioner(
    settings: dict,
    prompt: str | None,
    seed: int | None,
    name: str,
    revision: str | None,
    dtype: str,
    device: str,
) -> Captioner:
    """Load a model that captions with `settings` of `generate`, which are `None` where not given."""
    from transformers import AutoModelForImageTextToText

    from .load import load_model, try_settings

    model, processor = load_model(AutoModelForImageTextToText, name, revision, device, dtype, captions=True)
    prompt_ids = None if prompt is None else _encode_prompt(processor, prompt).to(model.device)
    settings = _complete_settings(settings, model, prompt_length=1 if prompt_ids is None else prompt_ids.shape[1])
    if settings.keys() - {"max_new_tokens"}:
        try_settings(model, "No captions can be made with these options", **settings)
    return Captioner(model, processor, prompt_ids, settings, seed or 0)
