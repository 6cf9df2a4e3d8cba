"""Fine-tune a CoCa or a dual model on images and texts, evaluate it before and after, and hand it back to open_clip.

    python examples/finetune.py                                    # the digits model learns captions in other words
    accelerate launch --multi_gpu --num_processes 2 examples/finetune.py  # the same, with the batch shared by two
    python examples/finetune.py FOLDER --data photos/ -o OUT       # a converted model on images with a metadata.jsonl

Without `--multi_gpu`, accelerate starts one process on a machine without GPUs, whatever it was asked for; with it, two
on the CPU. The loss is that of the batch of all processes. OUT gets the model as transformers loads it and, in
OUT/open_clip, as open_clip does.
"""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from digits.digits_data import Picture, compose_picture, load_scans
from digits.model_folder import model_folder
from transformers import AutoModel, AutoProcessor

from open_clip_transformers import (
    ContrastiveCollator,
    ContrastiveTrainer,
    ContrastiveTrainingArguments,
    convert_to_open_clip,
)
from open_clip_transformers.training.evaluation import evaluate_captions, evaluate_retrieval, load_dataset


def in_other_words(picture: Picture) -> str:
    """The caption of a picture in words and an order that the digits model has not learned."""
    colour = next(word for word in picture.caption.split() if word in ("red", "green", "blue", "yellow"))
    caption = picture.caption.replace(f"a single {colour} ", "").replace(f"{colour} digits ", "")
    return f"{caption.replace(' in a row', '')}, written in {colour}"


def digits_dataset(split: str, count: int) -> Dataset:
    """Pictures of digits with captions in other words, all different: the contrastive loss takes all others for wrong.

    "train" and "held_out" share no scan.
    """
    rng, scans = np.random.default_rng(1), load_scans(split)
    images = {}
    while len(images) < count:
        picture = compose_picture(rng, scans)
        images.setdefault(in_other_words(picture), picture.image)
    return Dataset.from_dict({"image": list(images.values()), "text": list(images)})


def evaluate(model, processor, dataset: Dataset, text_column: str) -> dict[str, float]:
    """Recall of texts and images and, of a model that captions, the share of captions that are right."""
    model.eval()
    columns = {"text_column": text_column, "image_column": "image"}
    results = evaluate_retrieval(model, processor, dataset, **columns)
    if model.can_generate():
        captions = evaluate_captions(
            model, processor, dataset, **columns, max_length=model.config.max_position_embeddings
        )
        results |= {name: captions[name] for name in ("exact", "chrf")}
    return results


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run the example; returns the metrics "before" and "after"."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="converted model (default: the digits checkpoint)")
    parser.add_argument("--data", help="images and texts: a folder with metadata.jsonl, a saved data set, or a Hub id")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("-o", "--output", type=Path, help="folder to write (default: none is kept)")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--batch-size", type=int, default=64, help="pairs of all processes together")
    parser.add_argument("--mini-batch-size", type=int, help="pairs whose activations are held at once")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    args = parser.parse_args(arguments)

    with ExitStack() as stack:
        folder = stack.enter_context(model_folder(args.folder))
        output = args.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if args.data is None:
            train, test = digits_dataset("train", 2048), digits_dataset("held_out", 128)
        else:
            train, test = load_dataset(args.data, "train").train_test_split(0.1, seed=0).values()
        training_args = ContrastiveTrainingArguments(
            output / "training",
            num_train_epochs=args.epochs,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.05,
            mini_batch_size=args.mini_batch_size,
            dataloader_drop_last=True,
            logging_steps=0.25,
            save_strategy="no",
            report_to="none",
        )
        # The batch is that of all processes, however many there are.
        if args.batch_size % training_args.world_size:
            parser.error(
                f"--batch-size {args.batch_size} is not shared evenly by {training_args.world_size} processes"
            )
        training_args.per_device_train_batch_size = args.batch_size // training_args.world_size

        # A model that captions learns that too; a dual model has no decoder.
        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder)
        results = {"before": evaluate(model, processor, test, args.text_column)}
        trainer = ContrastiveTrainer(
            model,
            training_args,
            data_collator=ContrastiveCollator(processor, text_column=args.text_column),
            train_dataset=train,
        )
        trainer.train()
        results["after"] = evaluate(model, processor, test, args.text_column)
        if trainer.is_world_process_zero():
            model.save_pretrained(output)
            processor.save_pretrained(output)
            convert_to_open_clip(output, output / "open_clip")
            print(f"trained by {training_args.world_size} processes")
            for when, metrics in results.items():
                print(f"{when:6}", *(f"{name} {value:.3f}" for name, value in metrics.items()), sep="  ")
    return results


if __name__ == "__main__":
    main()
