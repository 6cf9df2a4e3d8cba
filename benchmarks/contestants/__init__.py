"""The modules of the contestants of each suite, and the environments that they run in.

A module has `CONTESTANTS`, its classes by the names that are used here; harness/worker.py says what a class has. Those
of different libraries are modules of their own, as all that one imports is loaded before memory is first measured.
"""

# Suite -> module of this folder -> its contestants.
MODULES: dict[str, dict[str, tuple[str, ...]]] = {
    "caption": {
        "caption_ours": ("ours", "ours_optimized", "ours_compiled"),
        "caption_open_clip": ("open_clip",),
        "caption_blip": ("blip",),
    },
    "encoder": {
        "encoder_ours": ("ours", "ours_optimized", "ours_flash"),
        "encoder_open_clip": ("open_clip",),
        "encoder_transformers": ("transformers",),
        "encoder_timm": ("timm",),
    },
    "processing": {
        "processing_ours": ("ours",),
        "processing_open_clip": ("open_clip",),
        "processing_transformers": ("transformers", "transformers_pil"),
    },
    "startup": {"startup_processes": ("ours", "transformers", "open_clip")},
    "quantization": {
        "quantization_ours": ("ours", "ours_bf16", "ours_int8", "ours_int8_bf16", "ours_int8_dynamic"),
    },
    "linear": {
        "linear_kernels": ("ours", "onednn_packed", "onednn", "onednn_of_columns", "read", "mkl_of_columns"),
    },
    "zero_shot": {
        "zero_shot_pipelines": ("ours", "ours_optimized", "transformers"),
        "zero_shot_open_clip": ("open_clip",),
    },
    "training": {
        "training_ours": ("ours", "ours_mini_batches"),
        "training_transformers": ("transformers",),
        "training_open_clip": ("open_clip",),
    },
    "datasets": {"datasets_processes": ("ours", "ours_ray", "ours_ray_2", "open_clip", "transformers")},
    "conversion": {"conversion_files": ("ours", "copy")},
}
# Modules that run in another environment of harness/measure.py than "newest".
ENVIRONMENTS = {"caption_open_clip": "captioning"}


def find(suite: str, contestant: str) -> tuple[str, str]:
    """Environment and module of a contestant."""
    for module, names in MODULES[suite].items():
        if contestant in names:
            return ENVIRONMENTS.get(module, "newest"), f"contestants.{module}"
    raise ValueError(f"Contestant {contestant!r} of suite {suite!r} has no row in contestants/__init__.py.")
