"""Load a CoCa with int8 weights through torchao, and measure how far it agrees with fp32.

    python examples/torchao_int8.py [FOLDER]

FOLDER is a converted CoCa; by default the digits checkpoint is converted. The weights of all linear layers but the
caption head are held in int8 and computed with in the model's dtype. Quantise when loading, each time: torchao 0.18
cannot read back what it saved of a model with a parameter of its own, outside all modules, as `logit_scale` is.
"""

import argparse
from pathlib import Path

import torch
from digits.digits_data import held_out_pictures
from digits.model_folder import model_folder
from torch.nn import functional as F
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoProcessor, TorchAoConfig

from open_clip_transformers import CoCaForConditionalGeneration


def stored_bytes(model: torch.nn.Module) -> int:
    """The bytes that the weights take; a quantised one is made of several tensors."""

    def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
        if not hasattr(tensor, "__tensor_flatten__"):
            return [tensor]
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]

    return sum(part.nbytes for parameter in model.parameters() for part in parts(parameter.data))


@torch.no_grad()
def run(model: CoCaForConditionalGeneration, processor, images: list, texts: list[str]):
    """The captions of the images, the images' embeddings and the texts'."""
    pixel_values = processor(images=images, return_tensors="pt")
    captions = processor.batch_decode(model.generate(**pixel_values), skip_special_tokens=True)
    image_features = model.get_image_features(**pixel_values)
    text_features = model.get_text_features(**processor(text=texts, return_tensors="pt", padding=True))
    return captions, image_features.pooler_output, text_features.pooler_output


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Runs the example.

    Returns:
        The share of captions that are the same in fp32 and int8, the smallest cosines between the embeddings of both,
        the shares of right captions, and the size of the int8 weights as a share of fp32's.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="converted CoCa (default: the digits checkpoint)")
    parser.add_argument("--images", type=int, default=200, help="held-out pictures to caption (default: 200)")
    args = parser.parse_args(arguments)

    pictures = held_out_pictures(args.images)
    images, texts = [picture.image for picture in pictures], [picture.caption for picture in pictures]
    with model_folder(args.folder) as folder:
        processor = AutoProcessor.from_pretrained(folder)
        plain = CoCaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        quantised = CoCaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
        )
    captions, image_embeds, text_embeds = run(plain, processor, images, texts)
    int8_captions, int8_image_embeds, int8_text_embeds = run(quantised, processor, images, texts)

    def share(found: list[str], wanted: list[str]) -> float:
        return sum(a == b for a, b in zip(found, wanted)) / len(wanted)

    results = {
        "same_captions": share(int8_captions, captions),
        "image_cosine": F.cosine_similarity(int8_image_embeds, image_embeds).min().item(),
        "text_cosine": F.cosine_similarity(int8_text_embeds, text_embeds).min().item(),
        "right_fp32": share(captions, texts),
        "right_int8": share(int8_captions, texts),
        "size": stored_bytes(quantised) / stored_bytes(plain),
    }
    print(f"{len(images)} pictures, fp32 against int8 weights ({results['size']:.1%} of the bytes)")
    print(f"Captions that are the same                {results['same_captions']:.1%}")
    print(f"Captions that are right, fp32 and int8    {results['right_fp32']:.1%} {results['right_int8']:.1%}")
    print(f"Smallest cosine of the image embeddings   {results['image_cosine']:.6f}")
    print(f"Smallest cosine of the text embeddings    {results['text_cosine']:.6f}")
    return results


if __name__ == "__main__":
    main()
