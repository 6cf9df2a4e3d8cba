"""Train the digits CoCa with open_clip's own model and loss, and save it the way open_clip publishes models.

    pip install "open_clip_torch==3.3.0" scikit-learn tokenizers
    python examples/digits/train_digits.py

README.md next to this file states the recipe, the accuracy reached and the licence of the data.
"""

import argparse
import copy
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from digits_data import (
    CANVAS,
    CELL,
    COLOURS,
    DIGIT_WORDS,
    Scans,
    compose_picture,
    held_out_pictures,
    load_scans,
    write_caption,
)
from open_clip import create_model
from open_clip.coca_model import CoCa
from open_clip.loss import CoCaLoss
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


CONTEXT_LENGTH = 32
PAD, BOS, EOS = "<pad>", "<start>", "<end>"  # ids 0, 1, 2

MODEL_CFG = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": CANVAS,
        "patch_size": CELL,
        "layers": 4,
        "width": 96,
        "head_width": 16,
        "attentional_pool": True,
        "attn_pooler_queries": 17,
        "attn_pooler_heads": 4,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": None,  # known once the tokenizer is
        "hf_tokenizer_name": "open_clip_checkpoint",
        "width": 64,
        "heads": 4,
        "layers": 2,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": None,
        "width": 64,
        "heads": 4,
        "layers": 2,
    },
    "custom_text": True,
}
PREPROCESS_CFG = {
    "mean": [0.12, 0.12, 0.12],  # the board's, not the whole picture's: ink stands out from about zero
    "std": [0.2, 0.2, 0.2],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the captions of one and two digits, in which every word occurs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        min_frequency=1,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    digits = [*itertools.product(range(10)), *itertools.product(range(10), range(10))]
    captions = [write_caption(d, colour, column) for d in digits for colour in COLOURS for column in (False, True)]
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, tokenizer.token_to_id(BOS)), (EOS, tokenizer.token_to_id(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=CONTEXT_LENGTH,
    )


def fill_model_cfg(vocab_size: int) -> dict:
    """Fill the vocabulary size into MODEL_CFG."""
    cfg = copy.deepcopy(MODEL_CFG)
    cfg["text_cfg"]["vocab_size"] = cfg["multimodal_cfg"]["vocab_size"] = vocab_size
    return cfg


def build_model(cfg: dict) -> CoCa:
    """Build open_clip's CoCa with random weights."""
    model = CoCa(**{name: value for name, value in cfg.items() if name != "custom_text"})
    # open_clip 3.3.0 leaves the caption head as torch.empty made it
    torch.nn.init.normal_(model.text_decoder.text_projection, std=model.text_decoder.width**-0.5)
    # start with places as strong as strokes: reading digits in order needs them, and the default of 0.1 delays that
    torch.nn.init.normal_(model.visual.positional_embedding, std=1.0)
    return model


def compose_batch(rng, scans: Scans, batch_size: int, transform, tokenizer):
    """Compose pictures whose captions all differ: the contrastive loss takes every other caption as wrong."""
    pictures = {}
    while len(pictures) < batch_size:
        picture = compose_picture(rng, scans)
        pictures.setdefault(picture.caption, picture.image)
    return torch.stack([transform(image) for image in pictures.values()]), tokenizer(list(pictures))


@torch.no_grad()
def caption_greedily(model: CoCa, images: torch.Tensor, bos_id: int = 1, eos_id: int = 2) -> torch.Tensor:
    """Greedy decoding by open_clip's forward (its generate does not run on transformers >= 4.56)."""
    latent, tokens = model._encode_image(images)
    text = torch.full((len(images), 1), bos_id)
    while text.shape[1] < CONTEXT_LENGTH and not (text == eos_id).any(dim=1).all():
        out = model(None, text, image_latent=latent, image_embs=tokens, output_labels=False)
        text = torch.cat([text, out["logits"][:, -1:].argmax(-1)], dim=1)
    ended = (text == eos_id).cumsum(1) - (text == eos_id).int() > 0
    return text.masked_fill(ended, model.pad_id)


@torch.no_grad()
def evaluate(model: CoCa, transform, tokenizer: HFTokenizer, count: int, seed: int = 0) -> dict:
    """Measure exact-match captioning and zero-shot classification on pictures of held-out scans.

    Returns fractions: `caption_exact`; `caption_top1`, the right caption among 20 (its own and 19 of other pictures);
    `digit_top1`, the right one of ten "a single ... ..." captions, on the pictures of one digit.
    """
    model.eval()
    pictures = held_out_pictures(count, seed)
    images = torch.stack([transform(picture.image) for picture in pictures])
    truths = [picture.caption for picture in pictures]
    captions = tokenizer.tokenizer.batch_decode(caption_greedily(model, images), skip_special_tokens=True)
    image_features = model.encode_image(images)

    rng, unique = np.random.default_rng(seed), sorted(set(truths))
    features = dict(zip(unique, model.encode_text(tokenizer(unique))))
    ranked = []
    for image, truth in zip(image_features, truths):
        others = rng.permutation([caption for caption in unique if caption != truth])[:19]
        ranked.append(all(image @ features[truth] > image @ features[other] for other in others))
    singles = []
    for image, picture in zip(image_features, pictures):
        if len(picture.digits) == 1:
            colour = picture.caption.split()[2]
            labels = model.encode_text(tokenizer([f"a single {colour} {word}" for word in DIGIT_WORDS]))
            singles.append(int((labels @ image).argmax()) == picture.digits[0])
    model.train()
    return {
        "caption_exact": float(np.mean([ours == truth for ours, truth in zip(captions, truths)])),
        "caption_top1": float(np.mean(ranked)),
        "digit_top1": float(np.mean(singles)),
    }


def train(model: CoCa, transform, tokenizer: HFTokenizer, args: argparse.Namespace) -> None:
    """Train `model` in place with AdamW, a linear warm-up and a cosine decay."""
    loss_fn = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=model.pad_id)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    warmup = args.steps // 20
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / args.steps))),
    )
    rng, scans = np.random.default_rng(args.seed), load_scans("train")
    start = time.perf_counter()
    model.train()
    for step in range(1, args.steps + 1):
        images, text = compose_batch(rng, scans, args.batch_size, transform, tokenizer)
        out = model(images, text)
        contrastive, caption = loss_fn(**out)
        optimizer.zero_grad()
        (contrastive + caption).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as open_clip's training loop does
        if step % args.report_every == 0 or step == args.steps:
            scores = {k: round(v, 3) for k, v in evaluate(model, transform, tokenizer, 200, seed=1).items()}
            print(
                f"step {step:5d}  {time.perf_counter() - start:5.0f} s  contrastive {contrastive.item():.3f}  "
                f"caption {caption.item():.3f}  {scores}",
                flush=True,
            )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save tokenizer.json, and a tokenizer_config.json that transformers 4 and 5 both read."""
    tokenizer.save_pretrained(folder)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": True,  # transformers 4 would turn it off
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": CONTEXT_LENGTH,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_model(model: CoCa, cfg: dict, folder: Path) -> None:
    """Save fp16 weights and open_clip_config.json."""
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    config = {"model_cfg": cfg, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "open_clip_checkpoint")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report-every", type=int, default=500, help="steps between reports")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    tokenizer = train_tokenizer()
    args.output.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, args.output)
    open_clip_tokenizer = HFTokenizer(str(args.output), context_length=CONTEXT_LENGTH)
    transform = image_transform_v2(PreprocessCfg(size=CANVAS, **PREPROCESS_CFG), is_train=False)
    cfg = fill_model_cfg(len(tokenizer))
    model = build_model(cfg)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train(model, transform, open_clip_tokenizer, args)
    save_model(model, cfg, args.output)

    saved = create_model(f"local-dir:{args.output}")
    print("saved; on 2000 held-out pictures:", evaluate(saved, transform, open_clip_tokenizer, 2000))


if __name__ == "__main__":
    main()
