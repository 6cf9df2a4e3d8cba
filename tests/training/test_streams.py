"""Streamed data: ranks and workers read a share each, nothing twice and nothing never."""

import io
import tarfile
from collections import Counter
from itertools import accumulate, chain

import numpy as np
import pytest
import training_on_ranks as workers
from PIL import Image
from ranks import on_ranks
from tiny_folders import build_processor
from tiny_models import tiny_model

from open_clip_transformers import ContrastiveCollator, ContrastiveTrainer


datasets = pytest.importorskip("datasets")
webdataset = pytest.importorskip("webdataset")
pytestmark = pytest.mark.filterwarnings("ignore:.*too many workers:UserWarning")


def png(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_tars(folder, sizes: list[int], with_pairs: bool = False) -> str:
    """Tars with so many examples, numbered through; their pattern."""
    folder.mkdir(exist_ok=True)
    for index, (size, end) in enumerate(zip(sizes, accumulate(sizes))):
        with tarfile.open(folder / f"{index}.tar", "w") as tar:
            for number in range(end - size, end):
                pair = {"png": png(number), "txt": f"number {number}".encode()} if with_pairs else {}
                for extension, data in {"cls": str(number).encode(), **pair}.items():
                    info = tarfile.TarInfo(f"{number:03}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"{folder}/{{0..{len(sizes) - 1}}}.tar"


def pair_model():
    """A model and a processor for images and texts."""
    model = tiny_model("clip")
    processor = build_processor(model)
    model.resize_token_embeddings(len(processor.tokenizer))
    return model, processor


def stream_of_pairs(count: int = 4):
    return datasets.IterableDataset.from_generator(
        lambda: ({"image": Image.open(io.BytesIO(png(number))), "text": f"number {number}"} for number in range(count))
    )


@pytest.fixture
def folder(tmp_path) -> str:
    tiny_model("clip").save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_ranks_and_workers_read_a_share_each(folder, tmp_path):
    tars = write_tars(tmp_path / "tars", [6, 6, 6, 6])
    one_pass = {"max_steps": 4, "dataloader_num_workers": 2}
    scenarios = [
        (folder, "webdataset", tars, one_pass),
        (folder, "datasets", None, one_pass),
        (folder, "datasets_shuffled", None, one_pass),
        (folder, "datasets_split", None, one_pass),
        (folder, "torch", None, one_pass),
        # Shards that ranks cannot share evenly are read by both, which take turns.
        (folder, "datasets", None, {"max_steps": 4}, 24, 3),
        (folder, "datasets", None, {**one_pass, "accelerator_config": {"dispatch_batches": True}}),
        (folder, "webdataset", tars, {"max_steps": 2, "gradient_accumulation_steps": 2}),
    ]
    for scenario, *ranks in zip(scenarios, *on_ranks(workers.streamed, 2, tmp_path, scenarios)):
        assert [len(batches) for batches in ranks] == [4, 4], (scenario, ranks)
        assert Counter(chain(*ranks[0], *ranks[1])) == Counter(range(24)), (scenario, ranks)


def test_one_process_reads_everything_in_every_pass(folder, tmp_path):
    tars = write_tars(tmp_path / "tars", [4, 3])
    for kind in ("webdataset_one_node", "webdataset", "datasets", "torch"):
        steps = {"max_steps": 6, "per_device_train_batch_size": 3}
        batches = workers.streamed_numbers(folder, kind, tars, steps, 7, 2)
        assert [len(batch) for batch in batches] == [3, 3, 1] * 2, kind
        assert Counter(chain(*batches)) == Counter(dict.fromkeys(range(7), 2)), kind
        batches = workers.streamed_numbers(folder, kind, tars, {**steps, "dataloader_drop_last": True}, 7, 2)
        assert [len(batch) for batch in batches] == [3] * 6, kind


def test_uneven_ranks_stop_together_or_say_what_to_do(folder, tmp_path):
    uneven = write_tars(tmp_path / "uneven", [9, 3])
    ragged = write_tars(tmp_path / "ragged", [6, 5])
    few = write_tars(tmp_path / "few", [6])
    steps = {"max_steps": 6}
    drops = {**steps, "dataloader_drop_last": True}
    scenarios = {
        "they have 1, 0 batches. Give each rank": (folder, "webdataset", uneven, steps),
        "as many pairs from each rank, got 3, 2: drop the last": (folder, "webdataset", ragged, steps),
        "each pass": (folder, "webdataset", uneven, drops),
        "each full batch": (folder, "webdataset", ragged, drops),
        # The second rank has no tar, and webdataset says so in its worker.
        "fewer shards than workers": (folder, "webdataset", few, {**steps, "dataloader_num_workers": 1}),
        "a step takes 4": (folder, "datasets", None, {**steps, "gradient_accumulation_steps": 4}, 18, 2),
    }
    answers = on_ranks(workers.streamed, 2, tmp_path, list(scenarios.values()))
    for message, *ranks in zip(scenarios, *answers):
        if message.startswith("each"):
            expected = [[0, 1, 2], [9, 10, 11]] if message == "each pass" else [[0, 1, 2], [6, 7, 8]]
            assert [len(batches) for batches in ranks] == [6, 6], ranks
            assert [batches[0] for batches in ranks] == expected
        else:
            assert all(message in str(batches[-1]) for batches in ranks), ranks


def test_data_that_ranks_or_workers_would_read_twice_or_never_is_refused(folder, tmp_path):
    tars = write_tars(tmp_path / "tars", [6, 6, 6, 6])
    dispatch = {"accelerator_config": {"dispatch_batches": True}}
    scenarios = {
        "nodesplitter=webdataset.split_by_node": (folder, "webdataset_unsplit", tars, {}),
        "pass nodesplitter": (folder, "webdataset_one_node", tars, {}),
        "put webdataset.split_by_worker behind": (folder, "webdataset_unworked", tars, {"dataloader_num_workers": 2}),
        "leave out dispatch_batches": (folder, "webdataset", tars, dispatch),
        "shared out already": (folder, "datasets_split", None, dispatch),
        "pass the same `seed` to `shuffle`": (folder, "datasets_shuffled_unseeded", None, {}),
    }
    for message, *ranks in zip(scenarios, *on_ranks(workers.streamed, 2, tmp_path, list(scenarios.values()))):
        assert all(message in batches[0] and batches[0].startswith("ValueError") for batches in ranks), ranks


def test_pairs_of_tars_and_of_a_stream_are_learned(tmp_path):
    tars = webdataset.WebDataset(
        write_tars(tmp_path / "tars", [2, 2], with_pairs=True),
        nodesplitter=webdataset.split_by_node,
        shardshuffle=100,
        seed=0,
    )
    tars = tars.shuffle(1000).decode("pil").rename(image="jpg;png;webp", text="txt")
    for dataset in (tars, stream_of_pairs()):
        model, processor = pair_model()
        args = workers.training_arguments(tmp_path, max_steps=3, per_device_train_batch_size=4, learning_rate=0.1)
        collator = ContrastiveCollator(processor)
        losses = [entry.get("loss") for entry in trained(model, args, dataset, collator).state.log_history]
        assert losses[0] > losses[2]


def trained(model, args, dataset, collator) -> ContrastiveTrainer:
    trainer = ContrastiveTrainer(model, args, train_dataset=dataset, data_collator=collator)
    trainer.train()
    return trainer


@pytest.mark.parametrize("num_workers", [0, 1])
def test_columns_that_are_not_there_are_named_before_the_first_step(num_workers, tmp_path):
    model, processor = pair_model()
    args = workers.training_arguments(tmp_path, per_device_train_batch_size=2, dataloader_num_workers=num_workers)
    whole = datasets.Dataset.from_list(list(stream_of_pairs()))
    tars = webdataset.WebDataset(write_tars(tmp_path / "tars", [2], with_pairs=True), shardshuffle=False)
    for dataset, columns, message in (
        (whole, {"text_column": "caption"}, "has the columns 'image', 'text', and the collator reads 'caption'"),
        (whole.to_iterable_dataset(), {"image_column": "jpg"}, "reads 'jpg': name the right one by image_column"),
        (stream_of_pairs(), {"text_column": "caption"}, "has the columns 'image', 'text'.*by text_column"),
        (tars.decode("pil"), {}, "'png', 'txt', and the collator reads 'image': name"),
        (tars, {"image_column": "png", "text_column": "txt"}, r"Column 'txt' has bytes.*decode\(\"pil\"\)"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            trained(model, args, dataset, ContrastiveCollator(processor, **columns))
        assert all(parameter.grad is None for parameter in model.parameters())
    # A function makes the columns of this one when they are read.
    renamed = whole.with_transform(lambda rows: {"photo": rows["image"], "text": rows["text"]})
    assert trained(model, args, renamed, ContrastiveCollator(processor, image_column="photo")).state.global_step == 1
