"""Offload, `torch.compile` and `torch.export` on a CPU, of which transformers has tests for GPUs, or in no sdist."""

import copy
import tempfile

import torch
from transformers import set_seed


SPLITS = (0.5, 0.7, 0.9)  # as model_split_percents of the common tests


def tensors(value):
    """Every tensor of an output, in order."""
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, (list, tuple)) else []


class CpuContract:
    case = None

    def models(self):
        for model_class in self.case.model_classes:
            set_seed(0)
            config = self.case.config()
            model = model_class(config).eval()
            set_seed(1)
            yield model, self.case.inputs(config)

    def assert_same_outputs(self, a, b, atol=1e-5):
        a, b = tensors(a), tensors(b)
        self.assertEqual(len(a), len(b))
        self.assertTrue(a)
        for x, y in zip(a, b):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=atol)

    @torch.no_grad()
    def test_disk_offload(self):
        for model, inputs in self.models():
            size, expected = sum(t.nbytes for t in model.state_dict().values()), model(**inputs)
            with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as offload:
                model.save_pretrained(folder)
                for split in SPLITS:
                    loaded = type(model).from_pretrained(
                        folder, device_map="auto", max_memory={"cpu": int(size * split)}, offload_folder=offload
                    )
                    if split != SPLITS[-1] and not hasattr(loaded, "hf_device_map"):
                        continue  # transformers 5.5 dispatches no model that is on the disk alone
                    self.assertIn("disk", loaded.hf_device_map.values(), f"nothing offloaded at {split}")
                    self.assert_same_outputs(loaded(**inputs), expected)
                    if model.can_generate():
                        kwargs = {"max_new_tokens": 4, "do_sample": False}
                        self.assertTrue(
                            torch.equal(loaded.generate(**inputs, **kwargs), model.generate(**inputs, **kwargs))
                        )

    @torch.no_grad()
    def test_cpu_offload_hooks(self):
        """Weights that come to the execution device for each module's forward alone."""
        from accelerate import cpu_offload

        for model, inputs in self.models():
            expected = model(**inputs)
            self.assert_same_outputs(cpu_offload(copy.deepcopy(model), execution_device="cpu")(**inputs), expected)

    @torch.no_grad()
    def test_compile_fullgraph(self):
        for model, inputs in self.models():
            expected = model(**inputs)
            torch._dynamo.reset()
            self.assert_same_outputs(torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs), expected)

    def test_compile_training(self):
        for model, inputs in self.models():
            extra = self.case.labels(model.config, inputs, type(model)) or {}
            torch._dynamo.reset()
            model.train()
            output = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs, **extra)
            loss = getattr(output, "loss", None)
            (tensors(output)[0].float().sum() if loss is None else loss).backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            self.assertTrue(grads)
            self.assertTrue(all(torch.isfinite(g).all() for g in grads))

    @torch.no_grad()
    def test_export(self):
        for model, inputs in self.models():
            expected = model(**inputs)
            program = torch.export.export(model, (), inputs, strict=False)
            self.assert_same_outputs(program.module()(**inputs), expected)

    @torch.no_grad()
    def test_export_dynamic_batch(self):
        for model, inputs in self.models():
            batch = torch.export.Dim("batch", min=2, max=64)
            shapes = {name: {0: batch} if torch.is_tensor(value) else None for name, value in inputs.items()}
            program = torch.export.export(model, (), inputs, dynamic_shapes=shapes, strict=False)
            more = {
                name: torch.cat([value, value]) if torch.is_tensor(value) else value for name, value in inputs.items()
            }
            self.assert_same_outputs(program.module()(**more), model(**more))

    @torch.no_grad()
    def test_half_precision_from_folder(self):
        for model, inputs in self.models():
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                for dtype in (torch.bfloat16, torch.float16):
                    loaded = type(model).from_pretrained(folder, dtype=dtype)
                    kept = any(getattr(m, "_keep_in_fp32_modules", None) for m in loaded.modules())  # as T5's
                    self.assertEqual(
                        {p.dtype for p in loaded.parameters()} - ({torch.float32} if kept else set()), {dtype}
                    )
                    for value in tensors(loaded(**inputs)):  # inputs stay float32, as an image processor makes them
                        if value.is_floating_point():
                            self.assertEqual(value.dtype, dtype)
                            self.assertTrue(torch.isfinite(value).all())

    def test_autocast(self):
        for model, inputs in self.models():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = model(**inputs)
            with torch.no_grad():
                expected = model(**inputs)
            for a, b in zip(tensors(output), tensors(expected)):
                if a.is_floating_point():
                    self.assertLess(((a.float() - b).abs().mean() / b.abs().mean().clamp(min=1e-6)).item(), 0.1)

    @torch.no_grad()
    def test_deepcopy_and_pickle(self):
        import pickle

        for model, inputs in self.models():
            expected = model(**inputs)
            self.assert_same_outputs(copy.deepcopy(model)(**inputs), expected)
            self.assert_same_outputs(pickle.loads(pickle.dumps(model))(**inputs), expected)

    @torch.no_grad()
    def test_sharded_checkpoint(self):
        for model, inputs in self.models():
            expected = model(**inputs)
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder, max_shard_size="20KB")
                loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
                self.assertFalse(info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
                self.assert_same_outputs(loaded(**inputs), expected)
