"""Whole trainings on several ranks: DDP and FSDP2, checkpoints, uneven data."""

import json
import os
import subprocess
import sys

import pytest
import torch
import training_on_ranks as workers
from ranks import answers_on_ranks, on_ranks
from safetensors.torch import load_file
from tiny_models import tiny_model

from open_clip_transformers import OpenClipModel


def saved(name: str, folder) -> str:
    tiny_model(name).save_pretrained(folder)
    return str(folder)


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/model.safetensors")


def launch_with_fsdp2(folder: str, size: int, arguments: dict, options: list[str]):
    """Train under `accelerate launch`, as a user would; what came of it on the first rank."""
    command = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--use_fsdp", "--fsdp_version", "2"]
    command += ["--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_state_dict_type", "FULL_STATE_DICT"]
    path = os.pathsep.join(filter(None, sys.path))
    job = json.dumps({"folder": folder, "size": size, "arguments": arguments})
    command = [sys.executable, *command, *options, workers.__file__, job]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert run.returncode == 0, run.stderr
    return next(json.loads(line.partition("RESULT ")[2]) for line in run.stdout.splitlines() if "RESULT" in line)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "siglip", "coca"])
def test_fsdp2_by_accelerate_launch_trains_as_ddp_and_its_model_reloads(name, tmp_path):
    folder = saved(name, tmp_path / "model")
    arguments = {"max_steps": 3, "per_device_train_batch_size": 4, "mini_batch_size": 3, "weight_decay": 0.1}
    # This one's table of positions is a buffer.
    options = ["--fsdp_cpu_ram_efficient_loading", "false" if name == "clip" else "true"]
    runs = on_ranks(workers.trained, 2, tmp_path, folder, 24, arguments)
    runs.append(launch_with_fsdp2(folder, 24, arguments, options))
    assert [run["steps"] for run in runs] == [3] * 3
    ddp, fsdp = (weights(f"{folder}_{way}_trained") for way in ("ddp", "fsdp"))
    before = weights(folder)
    assert ddp["logit_scale"].shape == before["logit_scale"].shape and fsdp["logit_scale"].shape == (1,)
    assert any(not torch.equal(ddp[key], before[key]) for key in before)
    for key, value in ddp.items():
        assert torch.allclose(fsdp[key].reshape(value.shape), value, rtol=1e-4, atol=1e-6), key
    for nonscalar in (True, False):
        loaded, info = type(tiny_model(name)).from_pretrained(
            f"{folder}_fsdp_trained", nonscalar_logit_scale=nonscalar, output_loading_info=True
        )
        assert not any(info.values())
        assert loaded.logit_scale.shape == ((1,) if nonscalar else ())


@pytest.mark.slow
def test_training_goes_on_with_another_number_of_ranks_and_an_uneven_last_batch(tmp_path):
    folder = saved("clip", tmp_path / "model")
    arguments = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "optim": "adamw_torch"}
    arguments |= {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "mini_batch_size": 2}
    first = on_ranks(workers.trained, 2, tmp_path, folder, 17, arguments)
    assert [run["steps"] for run in first] == [2, 2]
    checkpoint = f"{first[0]['output']}/checkpoint-2"
    for ranks, steps in ((1, 3), (4, 4)):
        runs = on_ranks(workers.trained, ranks, tmp_path, folder, 17, {**arguments, "max_steps": steps}, checkpoint)
        assert [run["steps"] for run in runs] == [steps] * ranks
        assert all(torch.isfinite(value).all() for value in weights(f"{folder}_ddp_trained").values())


@pytest.mark.slow
def test_fsdp2_says_what_to_do_about_scalars_and_buffers(tmp_path):
    folders = [saved(name, tmp_path / name) for name in ("siglip", "clip")]
    for failure, _ in answers_on_ranks(workers.trained_scalar_under_fsdp2, 2, tmp_path, folders[0]):
        assert failure.startswith("ValueError") and "nonscalar_logit_scale=True" in failure
    arguments = {"fsdp": True, "fsdp_config": {"version": 2, "cpu_ram_efficient_loading": True}}
    for failure, _ in answers_on_ranks(workers.trained, 2, tmp_path, folders[1], 8, arguments):
        assert failure.startswith("ValueError") and "--fsdp_cpu_ram_efficient_loading false" in failure


def test_one_pair_a_rank_is_refused_without_gathering_alone(tmp_path):
    folder = saved("clip", tmp_path / "model")
    arguments = {"per_device_train_batch_size": 1, "gather_across_devices": False}
    for failure, _ in answers_on_ranks(workers.trained, 2, tmp_path, folder, 4, arguments):
        assert failure.startswith("ValueError: A batch of one pair has nothing to be compared with")
    runs = on_ranks(workers.trained, 2, tmp_path, folder, 4, {**arguments, "gather_across_devices": True})
    assert all(run["losses"][0] > 0 for run in runs)


def test_pairs_that_do_not_fill_a_batch_of_all_ranks_are_refused(tmp_path):
    folder = saved("clip", tmp_path / "model")
    for failure, _ in answers_on_ranks(workers.trained, 2, tmp_path, folder, 5, {"per_device_train_batch_size": 3}):
        assert failure.startswith("ValueError: The data set has 5 pairs, fewer than a batch of 2 ranks, 6")
    arguments = {"per_device_train_batch_size": 6, "dataloader_drop_last": True}
    with pytest.raises(ValueError, match="has 5 pairs, fewer than a batch, 6, and accelerate drops it"):
        workers.trained(folder, 5, arguments)


@pytest.mark.parametrize("adapt", [workers.with_lora, workers.with_locked_images], ids=["lora", "locked"])
def test_part_of_a_model_has_the_gradients_of_the_whole_batch(adapt, tmp_path):
    if adapt is workers.with_lora:
        pytest.importorskip("peft")
    folder = saved("clip", tmp_path / "model")
    settings = [{}, {"mini_batch_size": 3}, {"mini_batch_size": 3, "gradient_checkpointing": True}]
    whole, *_ = workers.trained_gradients(folder, 8, settings[:1], adapt=adapt)
    for found in on_ranks(workers.trained_gradients, 2, tmp_path, folder, 8, settings, None, adapt):
        for gradients in found:
            assert gradients.keys() == whole.keys() and len(whole) > 2
            for name in whole.keys() - {"loss"}:
                assert gradients[name] == pytest.approx(whole[name], rel=1e-4, abs=1e-6), name


def test_accumulated_parts_drop_alike_in_both_passes(tmp_path):
    folder = saved("clip", tmp_path / "model")
    setting = {"mini_batch_size": 3, "gradient_accumulation_steps": 2}
    assert max(on_ranks(workers.error_with_dropout, 2, tmp_path, folder, 20, setting)) <= 1e-5


def test_evaluations_of_all_ranks_and_of_one_hang_nobody(tmp_path):
    (losses, alone), (others, none) = on_ranks(
        workers.trained_with_evaluations, 2, tmp_path, saved("clip", tmp_path), 7
    )
    assert losses == others and len(losses) == len(alone) == 2 and not none
    assert min(losses + alone) > 0


def test_what_fails_on_one_rank_stops_all(tmp_path):
    folder = saved("clip", tmp_path / "model")
    (first, _), (second, _) = answers_on_ranks(workers.trained_where_one_fails, 2, tmp_path, folder)
    assert second.startswith("ValueError: The loss compares pairs, got 4 images and 2 texts")
    assert first.startswith("RuntimeError: Rank 1 could not read its batches: ValueError: The loss compares pairs")


def test_plain_trainer_says_once_that_it_gathers_nothing(tmp_path):
    folder = saved("clip", tmp_path / "model")
    first, second = on_ranks(workers.trained_by_plain_trainer, 2, tmp_path, folder)
    assert len(first) == 1 and "Training on 2 ranks" in first[0] and not second


def test_ranks_without_gpus_are_one_training(tmp_path):
    assert on_ranks(workers.world_size_by_default, 2, tmp_path, str(tmp_path)) == [2, 2]


def test_one_process_is_not_warned(tmp_path, caplog):
    model = OpenClipModel(tiny_model("clip").config).train()
    model(**workers.training_batch(model, 4), return_loss=True)
    assert "one rank alone" not in caplog.text
