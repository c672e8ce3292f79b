"""Cached tower features: the same as computed ones, for this tower and these pictures alone, whatever stopped the build."""

from __future__ import annotations

import copy
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers import ViTImageProcessor

from llava_pose.data.dataset import PoseDataset
from llava_pose.data.images import load_rgb
from llava_pose.errors import InputError
from llava_pose.model import LlavaPoseForConditionalGeneration
from llava_pose.train.feature_cache import FeatureCache, build_feature_cache
from tests.llava_pose.small_models import CLIP_PATCH, clip_config, small_model, small_processor

IMAGES = [f"train/{index}.png" for index in range(5)]
PROCESSOR = {"size": {"height": 64, "width": 64}}
# of caches that no tower fills
ROWS = 200
SHAPE = (1, 2, 3)
NAMES = [str(row) for row in range(ROWS)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    for name in IMAGES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def clip() -> LlavaPoseForConditionalGeneration:
    """Read only."""
    return small_model(vision=clip_config(), vision_feature_layer=-2)


def build(data: Path, model: LlavaPoseForConditionalGeneration, *, flips: bool = True, **changes) -> FeatureCache:
    processor = small_processor()
    for name, value in changes.items():
        setattr(processor.image_processor, name, value)
    return build_feature_cache(data / "cache", data, IMAGES, model, processor, flips=flips)


@torch.no_grad()
def computed(data: Path, model: LlavaPoseForConditionalGeneration, name: str, *, mirrored: bool) -> np.ndarray:
    picture = load_rgb(data / name)
    picture = ImageOps.mirror(picture) if mirrored else picture
    pixels = ViTImageProcessor(**PROCESSOR)([picture], return_tensors="pt")["pixel_values"]
    return model.patches({"pixel_values": pixels})[0].numpy()


# A cache filled without a tower: the feature of a row is its number, negative for the mirror image


def picture_of(row: int) -> Image.Image:
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (row, 0, 0))
    return image


def numbers_of(pictures: list[Image.Image]) -> np.ndarray:
    rows = [image.getpixel((0, 0))[0] - image.getpixel((1, 0))[0] for image in pictures]
    return np.stack([np.full(SHAPE, row, dtype=np.float32) for row in rows])


def numbered(folder: Path) -> FeatureCache:
    return FeatureCache(folder, NAMES, SHAPE, flips=True)


def require_whole(cache: FeatureCache) -> None:
    assert cache.missing() == []
    for row, name in enumerate(NAMES):
        assert (cache[name, False] == row).all()
        assert (cache[name, True] == -row).all()


def in_processes(*works: Callable[[], None]) -> list[int]:
    """Exit codes of processes that did these at the same time."""
    processes = [multiprocessing.get_context("fork").Process(target=work) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


# What is in it


@pytest.mark.parametrize("tower", ["clip", "convnext"])
def test_cached_features_are_those_computed(data: Path, clip, tower: str):
    model = clip if tower == "clip" else small_model()
    cache = build(data, model)
    assert cache.missing() == []
    for name in IMAGES:
        for mirrored in (False, True):
            expected = computed(data, model, name, mirrored=mirrored)
            assert cache[name, mirrored].dtype == np.float16
            np.testing.assert_allclose(cache[name, mirrored], expected, atol=2e-3 * np.abs(expected).max())
        assert not np.array_equal(cache[name, False], cache[name, True])


def test_samples_get_the_features_of_their_picture_and_orientation(data: Path, clip):
    cache = build(data, clip)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A car."}]
    samples = [
        {"id": str(i), "image": IMAGES[i], "conversations": turns, "poses": [], "flippable": i > 0} for i in (0, 3)
    ]
    processor = small_processor(patch_size=CLIP_PATCH)
    items = list(PoseDataset(samples, data, processor, flip=True, cache=cache))
    wanted = [(IMAGES[0], False), (IMAGES[3], False), (IMAGES[3], True)]
    assert len(items) == len(wanted)
    for item, key in zip(items, wanted, strict=True):
        assert np.array_equal(item.pictures["image_patches"][0].numpy(), cache[key].astype(np.float32))


def test_a_sample_of_several_pictures_gets_the_features_of_each(data: Path, clip):
    cache, names = build(data, clip), [IMAGES[3], IMAGES[1]]
    turns = [{"from": "human", "value": "<image>\n<image>\nWhat?"}, {"from": "gpt", "value": "Two cars."}]
    sample = {"id": "0", "image": names, "conversations": turns, "poses": [], "flippable": True}
    items = list(PoseDataset([sample], data, small_processor(patch_size=CLIP_PATCH), flip=True, cache=cache))
    for item, mirrored in zip(items, (False, True), strict=True):
        expected = np.stack([cache[name, mirrored] for name in names]).astype(np.float32)
        assert np.array_equal(item.pictures["image_patches"].numpy(), expected)


def test_a_tower_in_training_gives_what_it_gives_in_use_and_goes_on_training(data: Path):
    model = small_model(vision=clip_config(), vision_feature_layer=-2)
    model.config.vision_config.attention_dropout = 0.9
    for module in model.tower.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.9
    model.train()
    assert model.tower.training
    cache = build(data, model)
    assert model.tower.training
    model.eval()
    expected = computed(data, model, IMAGES[0], mirrored=False)
    np.testing.assert_allclose(cache[IMAGES[0], False], expected, atol=2e-3 * np.abs(expected).max())


def test_a_bfloat16_tower(data: Path):
    model = small_model(vision=clip_config(), vision_feature_layer=-2).bfloat16()
    cache = build(data, model)
    assert np.isfinite(cache[IMAGES[4], True]).all()
    assert cache[IMAGES[4], True].any()


# Which one it is


def test_the_same_is_computed_once(data: Path, clip):
    cache = build(data, clip)
    cache[IMAGES[2], True][:] = 7  # so that computing it again would show
    again = build(data, copy.deepcopy(clip))
    assert again.folder == cache.folder
    assert (again[IMAGES[2], True] == 7).all()


def changed_picture(data: Path, model) -> dict:
    Image.new("RGB", (20, 30)).save(data / IMAGES[3])
    return {}


def touched_picture(data: Path, model) -> dict:
    os.utime(data / IMAGES[3], ns=(1, 1))
    return {}


def one_weight(data: Path, model) -> dict:
    with torch.no_grad():
        next(iter(model.tower.parameters())).view(-1)[0] += 0.01
    return {}


def activation(data: Path, model) -> dict:
    """CLIPs of the same shapes differ in it."""
    model.config.vision_config.hidden_act = "gelu"
    return {}


def layer(data: Path, model) -> dict:
    model.config.vision_feature_layer = -1
    return {}


def precision(data: Path, model) -> dict:
    model.bfloat16()
    return {}


def colours(data: Path, model) -> dict:
    return {"image_mean": [0.1, 0.2, 0.3]}


def flips(data: Path, model) -> dict:
    return {"flips": False}


@pytest.mark.parametrize(
    "change", [changed_picture, touched_picture, one_weight, activation, layer, precision, colours, flips]
)
def test_another_picture_tower_or_setting_is_another_cache(data: Path, change: Callable):
    model = small_model(vision=clip_config(), vision_feature_layer=-2)
    before = build(data, model)
    options = change(data, model)
    after = build(data, model, **options)
    assert after.folder != before.folder
    assert after.missing() == []


def test_the_rest_of_the_model_does_not_matter(data: Path):
    """Or every training run would compute the features anew."""
    model = small_model(vision=clip_config(), vision_feature_layer=-2)
    before = build(data, model)
    torch.nn.init.normal_(model.vlm.get_output_embeddings().weight)
    model.pose_config.rotation_loss_weight = 3.0
    assert build(data, model).folder == before.folder


# What may happen to it


def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path: Path):
    def die() -> None:
        seen = 0

        def extract(pictures: list[Image.Image]) -> np.ndarray:
            nonlocal seen
            seen += 1
            if seen == 20:  # each block has two orientations: nine blocks are computed, eight of them on record
                os.kill(os.getpid(), signal.SIGKILL)
            return numbers_of(pictures)

        numbered(tmp_path).fill(picture_of, extract)

    assert in_processes(die) == [-signal.SIGKILL]
    cache = numbered(tmp_path)
    assert cache.missing() == list(range(128, ROWS))
    loaded = []
    cache.fill(lambda row: loaded.append(row) or picture_of(row), numbers_of)
    assert loaded == list(range(128, ROWS))
    require_whole(numbered(tmp_path))


def test_an_error_in_the_middle_leaves_no_row_done_that_is_not(tmp_path: Path):
    def load(row: int) -> Image.Image:
        if row == 150:
            raise InputError("150.png: cannot read the picture")
        return picture_of(row)

    with pytest.raises(InputError, match=r"150\.png"):
        numbered(tmp_path).fill(load, numbers_of)
    cache = numbered(tmp_path)
    assert set(range(144, ROWS)) <= set(cache.missing())
    cache.fill(picture_of, numbers_of)
    require_whole(cache)


@pytest.mark.parametrize("name", ["features.mmap", "done.mmap"])
@pytest.mark.parametrize("left", [0, 0.5, 2])
def test_a_file_of_another_size_is_computed_again(tmp_path: Path, name: str, left: float):
    numbered(tmp_path).fill(picture_of, numbers_of)
    path = tmp_path / name
    os.truncate(path, int(path.stat().st_size * left))
    cache = numbered(tmp_path)
    assert name == "done.mmap" or cache.missing() == list(range(ROWS))
    cache.fill(picture_of, numbers_of)
    require_whole(numbered(tmp_path))


@pytest.mark.parametrize("name", ["features.mmap", "done.mmap"])
def test_a_file_that_is_gone_is_made_again(tmp_path: Path, name: str):
    numbered(tmp_path).fill(picture_of, numbers_of)
    (tmp_path / name).unlink()
    cache = numbered(tmp_path)
    assert cache.missing() == list(range(ROWS))
    cache.fill(picture_of, numbers_of)
    require_whole(cache)


@pytest.mark.parametrize("shares", [[(0, 2), (1, 2)], [(0, 1), (0, 1)]], ids=["together", "each for itself"])
def test_two_processes_fill_one_cache(tmp_path: Path, shares: list[tuple[int, int]]):
    def fill(share: tuple[int, int]) -> Callable[[], None]:
        return lambda: numbered(tmp_path).fill(picture_of, numbers_of, share=share)

    assert in_processes(*map(fill, shares)) == [0, 0]
    require_whole(numbered(tmp_path))


def test_a_share_is_that_part_alone(tmp_path: Path):
    cache = numbered(tmp_path)
    cache.fill(picture_of, numbers_of, share=(1, 2))
    assert cache.missing() == list(range(0, ROWS, 2))


@pytest.mark.parametrize("value", [70000.0, -70000.0, np.inf, np.nan])
def test_features_that_float16_cannot_hold_stop_the_run(tmp_path: Path, value: float):
    def extract(pictures: list[Image.Image]) -> np.ndarray:
        features = numbers_of(pictures)
        features[-1, 0, 0, 0] = value
        return features

    said = "are no numbers" if np.isnan(value) else "overflow float16; set cache_features to false"
    with pytest.raises(InputError, match=said):
        numbered(tmp_path).fill(picture_of, extract)
    assert numbered(tmp_path).missing() == list(range(ROWS))


def test_a_picture_that_is_not_there_is_named(data: Path, clip):
    (data / IMAGES[1]).unlink()
    with pytest.raises(
        InputError, match=r"1\.png: cannot read the picture \(No such file.*\); run llava-pose prepare again"
    ):
        build(data, clip)


def test_a_damaged_picture_is_named(data: Path, clip):
    (data / IMAGES[1]).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1\.png: cannot read the picture"):
        build(data, clip)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file.x: cannot write there \(.*\); choose another path"):
        numbered(tmp_path / "file" / "x")


def test_a_copy_of_the_folder_is_as_good(tmp_path: Path):
    numbered(tmp_path / "one").fill(picture_of, numbers_of)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    require_whole(numbered(tmp_path / "two"))
