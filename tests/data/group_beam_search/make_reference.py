"""Writes two tiny models and what transformers 4.53.3's group beam search makes of them: see README.md.

Needs transformers 4.53.3, the last release in which `generate(num_beam_groups=...)` works by itself.

    python tests/data/group_beam_search/make_reference.py
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig, GPT2Config, GPT2LMHeadModel


FOLDER = Path(__file__).parent
SPECIAL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

GPT2 = {"vocab_size": 23, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 29, "tie_word_embeddings": False}
BART = {
    "vocab_size": 19,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 14,
    "decoder_ffn_dim": 18,
    "max_position_embeddings": 21,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}

# name of the case -> arguments of `generate`; the penalty of "equal_groups" is too small to change a choice
CASES = {
    "three_groups": {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.7},
    "two_groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 2.5, "num_return_sequences": 3},
    "groups_of_one": {"num_beams": 5, "num_beam_groups": 5, "diversity_penalty": 1.1, "num_return_sequences": 5},
    "equal_groups": {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 1e-9},
    "length_penalty_2": {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 0.5, "length_penalty": 2.0},
    "length_penalty_0": {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.5, "length_penalty": 0.0},
    "length_penalty_below_0": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "length_penalty": -0.7},
    "early_stopping": {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 0.9, "early_stopping": True},
    "early_stopping_never": {
        "num_beams": 4,
        "num_beam_groups": 2,
        "diversity_penalty": 0.9,
        "early_stopping": "never",
    },
    "min_length": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8, "min_length": 9},
    "repetition_penalty": {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.8, "repetition_penalty": 1.4},
    "no_repeat_ngram": {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.8, "no_repeat_ngram_size": 2},
    "forced_end": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.6, "forced_eos_token_id": 2},
    "padding_is_end": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "pad_token_id": 2},
    "without_cache": {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.7, "use_cache": False},
}
BART_CASES = ("three_groups", "two_groups", "early_stopping", "repetition_penalty")
MAX_NEW_TOKENS = 13


def random_model(model: torch.nn.Module, seed: int, scale: float) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_norm_scale else scale * noise)
    model.generation_config = GenerationConfig(**SPECIAL_IDS)
    return model.eval()


def prompts(vocab_size: int, padding_side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Four prompts of five tokens; the second is shorter."""
    input_ids = torch.randint(3, vocab_size, (4, 5), generator=torch.Generator().manual_seed(7))
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, slice(0, 2) if padding_side == "left" else slice(3, 5)] = 0
    return input_ids * attention_mask, attention_mask


def write(name: str, model: torch.nn.Module, config: dict, padding_side: str, cases: tuple[str, ...]) -> None:
    input_ids, attention_mask = prompts(config["vocab_size"], padding_side)
    expected = {}
    for case in cases:
        # transformers 5.23 does not penalise the repetition of padding, 4.53.3 does: leave the padded prompt out
        rows = [0, 2, 3] if case == "repetition_penalty" else [0, 1, 2, 3]
        outputs = model.generate(
            input_ids[rows],
            attention_mask=attention_mask[rows],
            max_new_tokens=MAX_NEW_TOKENS,
            output_scores=True,
            return_dict_in_generate=True,
            **CASES[case],
        )
        expected[case] = {
            "generate_kwargs": CASES[case],
            "prompts": rows,
            "sequences": outputs.sequences.tolist(),
            "sequences_scores": [round(score, 5) for score in outputs.sequences_scores.tolist()],
        }
    data = {
        "config": config,
        "special_ids": SPECIAL_IDS,
        "max_new_tokens": MAX_NEW_TOKENS,
        "input_ids": input_ids.tolist(),
        "attention_mask": attention_mask.tolist(),
        "cases": expected,
    }
    lines = json.dumps(data, separators=(", ", ": ")).replace('}, "', '},\n"').replace('"cases"', '\n"cases"')
    (FOLDER / f"{name}.json").write_text(lines + "\n")
    # shared tensors (BART's embeddings) are saved under one name
    weights = {key: value.contiguous() for key, value in model.named_parameters()}
    save_file(weights, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    gpt2 = random_model(GPT2LMHeadModel(GPT2Config(**GPT2, **SPECIAL_IDS)), seed=3, scale=0.5)
    write("gpt2", gpt2, GPT2, "left", tuple(CASES))
    bart = random_model(BartForConditionalGeneration(BartConfig(**BART, **SPECIAL_IDS)), seed=1, scale=0.3)
    write("bart", bart, BART, "right", BART_CASES)
