"""Teach a model new pictures through LoRA (PEFT), save the adapter, load it again, and merge it.

    python examples/peft_lora.py [FOLDER]

FOLDER is a converted model, dual or CoCa; by default the digits checkpoint is converted. That model has seen chalk on
dark boards only; the pictures here are negatives of these, which it reads badly before. The adapter sits on `q_proj`
and `v_proj` of every attention: towers, attentional pooler, and both kinds in CoCa's decoder.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from digits.digits_data import held_out_pictures
from digits.model_folder import model_folder
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import ImageOps
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor, PreTrainedModel


def training_batch(model: PreTrainedModel, processor, images: list, texts: list[str]) -> dict:
    """Pairs, compared with each other; where the model captions, its captions are learned too."""
    batch = dict(processor(images=images, return_tensors="pt"))
    batch |= {"input_ids": processor(text=texts, return_tensors="pt", padding=True)["input_ids"], "return_loss": True}
    if model.can_generate():
        # Padding is known by its id, and is nothing to learn.
        ids = batch["input_ids"]
        batch["labels"] = ids.masked_fill(ids == model.config.pad_token_id, -100)
    return batch


def train(model: PeftModel, batch: dict, steps: int, learning_rate: float = 3e-3) -> list[float]:
    """Trains the adapter on one batch; returns the loss of each step."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(parameters, lr=learning_rate), []
    model.train()
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def outputs(model: torch.nn.Module, batch: dict) -> list[torch.Tensor]:
    """Similarities, embeddings, and where the model captions the logits of the captions."""
    result = model(**batch)
    names = ("logits_per_image", "image_embeds", "text_embeds", "logits")
    return [result[name] for name in names if name in result]


def largest_difference(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference of any output, relative to its largest expected value."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(actual, expected))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Runs the example.

    Returns:
        The loss before and after, the relative differences of the reloaded adapter's outputs and of the merged model's
        from those of the trained one, the saved adapter's tensors and how many of them are LoRA's, and its size as a
        share of the model's parameters.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="converted model (default: the digits checkpoint)")
    parser.add_argument("--images", type=int, default=24, help="pictures to learn (default: 24)")
    parser.add_argument("--steps", type=int, default=60, help="steps of training (default: 60)")
    args = parser.parse_args(arguments)

    torch.manual_seed(0)
    pictures = held_out_pictures(args.images)
    images = [ImageOps.invert(picture.image) for picture in pictures]
    with model_folder(args.folder) as folder, tempfile.TemporaryDirectory() as temporary:
        adapter, merged_folder = Path(temporary) / "adapter", Path(temporary) / "merged"
        processor = AutoProcessor.from_pretrained(folder)
        base = AutoModel.from_pretrained(folder, dtype=torch.float32)
        batch = training_batch(base, processor, images, [picture.caption for picture in pictures])

        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(base, config)
        losses = train(model, batch, args.steps)
        trained = outputs(model, batch)
        model.save_pretrained(adapter)
        with safe_open(adapter / "adapter_model.safetensors", "pt") as file:
            sizes = {name: file.get_tensor(name).numel() for name in file.keys()}  # noqa: SIM118

        again = PeftModel.from_pretrained(AutoModel.from_pretrained(folder, dtype=torch.float32), adapter)
        reloaded = outputs(again.eval(), batch)
        again.merge_and_unload().save_pretrained(merged_folder)
        merged = outputs(AutoModel.from_pretrained(merged_folder).eval(), batch)

    parameters = sum(parameter.numel() for name, parameter in model.named_parameters() if "lora_" not in name)
    results = {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "reloaded_difference": largest_difference(reloaded, trained),
        "merged_difference": largest_difference(merged, trained),
        "saved_tensors": len(sizes),
        "saved_lora_tensors": sum("lora_" in name for name in sizes),
        "size": sum(sizes.values()) / parameters,
    }
    print(f"Loss {losses[0]:.3f} -> {losses[-1]:.3f} in {args.steps} steps")
    print(f"Adapter of {len(sizes)} tensors, {results['size']:.1%} of the model's size")
    print(f"Relative difference after loading it again  {results['reloaded_difference']:.1e}")
    print(f"Relative difference after merging it        {results['merged_difference']:.1e}")
    return results


if __name__ == "__main__":
    main()
