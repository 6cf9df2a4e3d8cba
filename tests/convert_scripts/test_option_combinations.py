"""Random mixtures of open_clip's options: what is right one by one must be right together."""

import pytest
from random_configs import random_model_cfg
from tiny_configs import save_open_clip_folder

from open_clip_transformers.convert_scripts.convert_open_clip import convert_open_clip_checkpoint


QUICK, ALL = range(40), range(40, 340)


def check_combination(tmp_path, seed: int):
    save_open_clip_folder(tmp_path / "source", random_model_cfg(seed))
    # The conversion itself compares features, logits and caption logits, and fails beyond 2e-5.
    report = convert_open_clip_checkpoint(tmp_path / "source", tmp_path / "out", with_processor=False, verify="full")
    assert {"image features", "text features"} <= report.verification.differences.keys()


@pytest.mark.parametrize("seed", QUICK, ids="seed-{}".format)
def test_random_options_agree_with_open_clip(tmp_path, seed):
    check_combination(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ALL, ids="seed-{}".format)
def test_more_random_options_agree_with_open_clip(tmp_path, seed):
    check_combination(tmp_path, seed)


def test_random_options_reach_every_value():
    """A generator that never chooses a value would test nothing there."""
    configs = [random_model_cfg(seed) for seed in QUICK]
    seen = {
        (part, key, str(value))
        for cfg in configs
        for part in cfg
        if isinstance(cfg[part], dict)
        for key, value in cfg[part].items()
    }
    expected = {
        "vision_cfg": {
            "attentional_pool": [False, True, "parallel", "cascade"],
            "pool_type": ["tok", "avg", "none"],
            "pos_embed_type": ["learnable", "sin_cos_2d"],
            "no_ln_pre": [False, True],
        },
        "text_cfg": {
            "pool_type": ["argmax", "eos", "first", "last", "none"],
            "no_causal_mask": [False, True],
            "embed_cls": [False, True],
            "proj_bias": [False, True],
        },
    }
    assert (
        not {
            (part, key, str(value))
            for part, options in expected.items()
            for key, values in options.items()
            for value in values
        }
        - seen
    )
    assert {"multimodal_cfg" in cfg for cfg in configs} == {False, True}
