"""A MaMMUT of open_clip where none is installed: its checkpoints, and a stand-in that runs them."""

import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_models import randomized
from torch import nn
from torch.nn import functional as F

from open_clip_transformers.convert_scripts.mapping.config import build_config
from open_clip_transformers.convert_scripts.mapping.plan import MODEL_CLASSES, rename_table
from open_clip_transformers.convert_scripts.mapping.state_dict import resolve


def save_mammut_folder(folder: Path, model_cfg: dict, preprocess_cfg: dict | None = None) -> Path:
    """Writes a MaMMUT with random weights as open_clip publishes one; returns the folder."""
    config = build_config(copy.deepcopy(model_cfg))
    ours = randomized(MODEL_CLASSES[config.model_type](config)).state_dict()
    steps, _ = resolve(ours, rename_table(config), "targets")
    folder.mkdir(parents=True)
    tensors = {key: tensor.contiguous() for step in steps for key, tensor in step.invert(ours)}
    save_file(tensors, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


class StandIn(nn.Module):
    """What the MaMMUT of LAION's open_clip computes, of the layers of open_clip 3.3.0, which have an MLP each.

    `open_clip.mammut_model.MaMMUT` takes the same arguments, has the same methods and tensors.
    """

    def __init__(self, embed_dim, text_cfg, vision_cfg):
        from open_clip.model import CLIPVisionCfg, _build_vision_tower

        super().__init__()
        self.visual = _build_vision_tower(embed_dim, CLIPVisionCfg(**vision_cfg))
        self.text = StandInText(text_cfg)
        self.map_viz2txt_kv = nn.Parameter(torch.empty(vision_cfg["width"], text_cfg["width"]))
        self.logit_scale = nn.Parameter(torch.tensor(2.7))
        self.logit_bias = None

    def _encode_image(self, image, normalize=True):
        pooled, tokens = self.visual(image)
        return F.normalize(pooled, dim=-1) if normalize else pooled, tokens

    def encode_image(self, image, normalize=True):
        return self._encode_image(image, normalize)[0]

    def encode_text(self, text, normalize=True):
        pooled = self.text(text).mean(dim=1)
        return F.normalize(pooled, dim=-1) if normalize else pooled

    def forward(self, image, text, is_training=True):
        tokens = self._encode_image(image)[1] @ self.map_viz2txt_kv
        text = text[:, :-1] if is_training else text
        return {"logits": self.text(text, tokens) @ self.text.text_projection}


class StandInText(nn.Module):
    def __init__(self, cfg):
        from open_clip.transformer import LayerNorm, ResidualAttentionBlock

        super().__init__()
        width, heads, self.step = cfg["width"], cfg["heads"], cfg["cross_attn_ratio"]
        self.token_embedding = nn.Embedding(cfg["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.empty(cfg["context_length"], width))
        self.resblocks = nn.ModuleList([ResidualAttentionBlock(width, heads) for _ in range(cfg["layers"])])
        cross = range(0, cfg["layers"], self.step)
        self.cross_attn = nn.ModuleList([ResidualAttentionBlock(width, heads, is_cross_attention=True) for _ in cross])
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, cfg["vocab_size"]))

    def forward(self, text, image_tokens=None):
        length = text.shape[1]
        states = self.token_embedding(text) + self.positional_embedding[:length]
        mask = None if image_tokens is None else torch.full((length, length), -torch.inf).triu(1)
        for index, layer in enumerate(self.resblocks):
            states = layer(states, attn_mask=mask)
            if image_tokens is not None and index % self.step == 0:
                states = self.cross_attn[index // self.step](states, k_x=image_tokens, v_x=image_tokens)
        return self.ln_final(states)
