"""A train.json with a sample a line is read line by line, and says what the same samples in any other layout say."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import tracemalloc
from pathlib import Path

import pytest

from data_prep.instruct.command import write_json_array
from llava_pose.data.samples import LinesOfSamples, read_samples
from llava_pose.errors import InputError


def sample(number: int, **changes) -> dict:
    turns = [{"from": "human", "value": "Hello, Ü?"}, {"from": "gpt", "value": f"Hello, {number}."}]
    return {"id": f"car/{number}/0", "conversations": turns, "poses": [], **changes}


def written(folder: Path, samples: list[dict]) -> Path:
    write_json_array(folder / "train.json", samples)
    return folder / "train.json"


def test_lines_are_the_samples_of_the_array(tmp_path):
    samples = [sample(number) for number in range(7)]
    path = written(tmp_path, samples)
    lines = read_samples(path)
    assert isinstance(lines, LinesOfSamples)
    assert list(lines) == samples == json.loads(path.read_text())
    assert lines[-1] == samples[-1]
    assert lines[1:5:2] == samples[1:5:2]
    with pytest.raises(IndexError):
        lines[7]
    path.write_bytes(path.read_bytes().replace(b"\n", b" \r\n").replace(b"[ \r\n", b"[\n"))
    assert list(read_samples(path)) == samples


def test_other_layouts_are_read_whole(tmp_path):
    samples, path = [sample(number) for number in range(3)], tmp_path / "train.json"
    for text in (json.dumps(samples), json.dumps(samples, indent=2), "\ufeff" + written(tmp_path, samples).read_text()):
        path.write_text(text, encoding="utf-8")
        assert read_samples(path) == samples


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b",\n", b"\n", "not valid JSON"),
        (b"\n]", b",\n]", "not valid JSON"),
        (b"\n]", b"", "not valid JSON"),
        (b"\n]", b"\n]\n{}", "not valid JSON"),
        (b"\xc3\x9c", b"\xc3", "line 2 is not UTF-8 text"),
        (b"\xc3\x9c", b"\\ud800", "half of a letter"),
        (b'"poses": []', b'"poses": 5', "sample 0: 'poses' must be a list.*(\n.*)*sample 1: 'poses' must be a list"),
        (b'{"id"', b'"id", {"id"', "sample 0 is no JSON object"),
    ],
)
def test_damaged_lines_are_named(tmp_path, old, new, match):
    path = written(tmp_path, [sample(0), sample(1)])
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(InputError, match=match) as caught:
        read_samples(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_worker_reads_the_lines_for_itself(tmp_path, start):
    samples = [sample(number) for number in range(50)]
    lines = read_samples(written(tmp_path, samples))
    with multiprocessing.get_context(start).Pool(1) as pool:
        assert pool.map(lines.__getitem__, range(50)) == samples


def test_a_file_that_was_changed_meanwhile_is_not_read_on(tmp_path):
    path = written(tmp_path, [sample(0), sample(1)])
    lines, pickled = read_samples(path), pickle.dumps(read_samples(path))
    written(tmp_path, [sample(2, category="car"), sample(3)])
    assert lines[0] == sample(0)  # the file that it has open
    with pytest.raises(InputError, match="was changed since it was read"):
        pickle.loads(pickled)


def test_memory_does_not_grow_with_the_text(tmp_path):
    path = written(tmp_path, [sample(number, words="long " * 200) for number in range(5_000)])
    tracemalloc.start()
    lines = read_samples(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(lines) == 5_000
    assert most < path.stat().st_size / 5
    assert len(pickle.dumps(lines)) < 16 * len(lines)
