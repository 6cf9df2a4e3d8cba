"""Reports of a run over a data set while it works, where standard error is no terminal."""

from open_clip_transformers.datasets import progress


def test_a_line_a_minute_tells_shards_images_rate_and_time_left(monkeypatch, capsys):
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = progress.Progress(4)
    for number in range(1, 151):
        clock[0] += 1.5
        bar.image()
        if number == 100:
            bar.shard()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "0 of 4 shards, 40 images, 0.7 images/s",
        "0 of 4 shards, 80 images, 0.7 images/s",
        "1 of 4 shards, 120 images, 0.7 images/s, 07:00 left",
    ]


def test_work_of_actors_is_told_of_too(monkeypatch, capsys):
    """Count whole shards, which is all that Ray reports."""
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    bar = progress.Progress(4)
    clock[0] += 60
    bar.shard()  # which could not be read
    for _ in range(2):
        clock[0] += 59
        bar.shard(100)
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "1 of 4 shards, 0 images, 0.0 images/s",
        "3 of 4 shards, 200 images, 1.1 images/s, 00:59 left",
    ]
