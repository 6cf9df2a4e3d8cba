"""Where each contestant of a suite is, and the environment that it runs in.

A module has `CONTESTANTS`, its classes by the names that are used here; harness/worker.py says what a class has.
"""

# (suite, contestant) -> (environment of harness/environments.py, module)
TABLE: dict[tuple[str, str], tuple[str, str]] = {
    **{("caption", name): ("newest", "contestants.caption_ours") for name in ("ours", "ours_fused", "ours_compiled")},
    ("caption", "open_clip"): ("captioning", "contestants.caption_open_clip"),
    ("caption", "blip"): ("newest", "contestants.caption_blip"),
    **{("encoder", name): ("newest", "contestants.encoder_ours") for name in ("ours", "ours_fused", "ours_flash")},
    **{("encoder", name): ("newest", f"contestants.encoder_{name}") for name in ("open_clip", "transformers", "timm")},
    **{
        ("processing", name): ("newest", f"contestants.processing_{name}")
        for name in ("ours", "open_clip", "transformers")
    },
    ("processing", "transformers_pil"): ("newest", "contestants.processing_transformers"),
    **{
        ("startup", name): ("newest", "contestants.startup_processes")
        for name in ("ours", "transformers", "open_clip")
    },
    **{
        ("quantization", name): ("newest", "contestants.quantization_ours")
        for name in ("ours", "ours_bf16", "ours_int8", "ours_int8_bf16", "ours_int8_dynamic")
    },
    **{
        ("linear", name): ("newest", "contestants.linear_kernels")
        for name in ("ours", "ours_fused", "torch", "onednn", "onednn_of_columns", "read", "mkl_of_columns")
    },
    **{
        ("zero_shot", name): ("newest", "contestants.zero_shot_pipelines")
        for name in ("ours", "ours_fused", "transformers")
    },
    ("zero_shot", "open_clip"): ("newest", "contestants.zero_shot_open_clip"),
    **{("conversion", name): ("newest", "contestants.conversion_files") for name in ("ours", "copy")},
}


def find(suite: str, contestant: str) -> tuple[str, str]:
    """Environment and module of a contestant."""
    if (suite, contestant) not in TABLE:
        raise ValueError(f"Contestant {contestant!r} of suite {suite!r} has no row in contestants/__init__.py.")
    return TABLE[suite, contestant]
