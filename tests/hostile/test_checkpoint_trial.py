"""A few bytes of a checkpoint that ask for all memory or never end are one sentence: a child of the process meets them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoImageProcessor, ViTConfig, ViTImageProcessor, ViTModel

from eval.systems.linear_probe.backbone import load_probe_backbone
from eval.systems.network import load_vision_backbone
from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.errors import InputError
from llava_pose.model import trial
from llava_pose.model.loading import load_full, load_model
from llava_pose.model.processors import load_image_processor, load_processor
from llava_pose.model.trial import try_apart
from llava_pose.train.trainable import add_lora
from llava_pose.utils import apart as module_apart

Change = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried here is small, and so are its limits, that the tests end soon."""
    monkeypatch.setattr(trial, "SECONDS", 6)
    monkeypatch.setattr(trial, "MOST_MEMORY", 1 << 30)


@pytest.fixture
def checkpoint(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the tiny base. Read only."""
    folder = tmp_path_factory.mktemp("adapter")
    add_lora(load_full(tiny_base, dtype=torch.float32), r=2, alpha=4, dropout=0.0, tune_vision=False).save_pretrained(
        folder
    )
    return folder


def changed(file: str, *path: str, to: Any) -> Change:
    """A change of one value of a JSON file, found by its keys; what is not there is made."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        place = values
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = to
        (folder / file).write_text(json.dumps(values))

    return change


def tokenizer(part: str, to: Any) -> Change:
    """A change of a plain tokenizer, all of which is in tokenizer.json."""

    def change(folder: Path) -> None:
        changed("tokenizer_config.json", "tokenizer_class", to="PreTrainedTokenizerFast")(folder)
        changed("tokenizer.json", part, to=to)(folder)

    return change


def replaces(kind: str, letter: str, length: int) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": letter}, "content": letter * length}
    return {"type": "Sequence", kind: [replace] * 3}


def refused(load: Callable[[], Any], folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load()
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CONFIGS: dict[str, Change] = {
    "ten billion layers of attention": changed(
        "config.json",
        "text_config",
        to={"model_type": "gpt_neo", "attention_types": [[["global"], 10**10]], "num_layers": 2},
    ),
    "layers as many as bytes": changed(
        "config.json", "text_config", to={"model_type": "qwen2", "num_hidden_layers": 10**7}
    ),
}
PROCESSORS: dict[str, Change] = {
    "pictures of a trillion pixels before they are cropped": changed(
        "processor_config.json",
        "image_processor",
        to={
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 10**6},
            "do_center_crop": True,
            "crop_size": {"height": 96, "width": 96},
        },
    ),
    "a letter that becomes billions": tokenizer("normalizer", replaces("normalizers", "a", 2000)),
    "tokens whose text is billions of letters": tokenizer("decoder", replaces("decoders", "e", 3000)),
    "a million tokens at each end": tokenizer(
        "post_processor",
        {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}]
            + [{"SpecialToken": {"id": "</s>", "type_id": 0}}] * 200_000,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
        },
    ),
    "a million letters before each text": tokenizer("normalizer", {"type": "Prepend", "prepend": "a" * 10**6}),
}


@pytest.mark.parametrize("bomb", [pytest.param(c, id=name) for name, c in CONFIGS.items()])
def test_a_config_that_has_no_end_is_a_sentence(bomb: Change, checkpoint: Path) -> None:
    bomb(checkpoint)
    refused(lambda: load_full(checkpoint), checkpoint)


@pytest.mark.parametrize("bomb", [pytest.param(c, id=name) for name, c in PROCESSORS.items()])
def test_a_processor_that_has_no_end_is_a_sentence(bomb: Change, checkpoint: Path) -> None:
    bomb(checkpoint)
    refused(lambda: load_processor(checkpoint), checkpoint)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"target_modules": "(.|[a-z_0-9])*!"}, id="pattern of two ways"),
        pytest.param({"target_modules": ".?" * 60 + "!"}, id="pattern of sixty choices"),
        pytest.param({"target_modules": [f"x{i}" for i in range(10**6)]}, id="a million targets"),
        pytest.param({"modules_to_save": [f"x{i}" for i in range(10**6)]}, id="a million modules"),
    ],
)
def test_an_adapter_that_has_no_end_is_a_sentence(
    values: dict[str, Any], adapter: Path, tiny_base: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "hostile"))
    for name, value in values.items():
        changed("adapter_config.json", name, to=value)(folder)
    said = refused(lambda: load_model(folder, base=tiny_base), folder)
    assert "adapter_config.json" in said


FILES = [
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "processor_config.json"),
    *("chat_template.jinja", "special_tokens_map.json", "added_tokens.json", "preprocessor_config.json"),
    *("tokenizer.model", "additional_chat_templates/other.jinja"),
]


@pytest.mark.parametrize("name", FILES)
def test_a_sparse_file_of_any_size_is_not_read(name: str, checkpoint: Path) -> None:
    file = checkpoint / name
    file.parent.mkdir(exist_ok=True)
    file.touch()
    os.truncate(file, 20 << 30)
    for load in (load_full, load_processor):
        assert f"{file}: has more than 64 MiB" in refused(lambda load=load: load(checkpoint), checkpoint)


def test_another_file_is_not_opened_as_a_tokenizer(checkpoint: Path) -> None:
    changed("tokenizer_config.json", "gguf_file", to="/etc/passwd")(checkpoint)
    said = refused(lambda: load_processor(checkpoint), checkpoint)
    assert f"{checkpoint}/tokenizer_config.json: gguf_file names another file to read" in said


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_file_of_a_wrong_kind_is_named(name: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text("[]")
    assert f"{checkpoint / name}: must hold a JSON object" in refused(lambda: load_full(checkpoint), checkpoint)


def test_a_byte_order_mark_is_called_so(checkpoint: Path) -> None:
    file = checkpoint / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert f"{file}: begins with a byte order mark" in refused(lambda: load_full(checkpoint), checkpoint)


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(**small, image_size=32, patch_size=16)).save_pretrained(tmp_path / "tower")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "tower")
    return tmp_path / "tower"


LOADERS: dict[str, Callable[[Path], Any]] = {
    "a classifier's backbone": lambda f: load_vision_backbone(str(f)),
    "a probe's backbone": lambda f: load_probe_backbone(str(f)),
    "assemble": lambda f: assemble(AssembleConfig(vision=str(f), language=str(f), out=str(f.with_name("out")))),
}


@pytest.mark.parametrize("load", [*LOADERS.values(), load_full, load_processor, load_image_processor])
def test_a_file_in_the_place_of_a_folder_is_not_read(load: Callable[[Path], Any], tmp_path: Path) -> None:
    """transformers take a file for a config."""
    file = tmp_path / "model"
    file.touch()
    os.truncate(file, 20 << 30)
    with pytest.raises(InputError, match=r"is no folder|there is no such folder"):
        load(file)


@pytest.mark.parametrize("load", [pytest.param(load, id=name) for name, load in LOADERS.items()])
def test_a_backbone_that_has_no_end_is_a_sentence(load: Callable[[Path], Any], tower: Path) -> None:
    values = {"model_type": "gpt_neo", "attention_types": [[["global"], 10**10]], "num_layers": 2}
    (tower / "config.json").write_text(json.dumps(values))
    refused(lambda: load(tower), tower)


def test_a_backbones_image_processor_that_has_no_end_is_a_sentence(tower: Path) -> None:
    changed("preprocessor_config.json", "size", to={"height": 10**6, "width": 10**6})(tower)
    refused(lambda: load_vision_backbone(str(tower)), tower)


# the child itself


def test_what_the_child_does_is_not_seen_here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def attempt() -> None:
        seen.append(1)
        os.write(1, b"noise")
        os.write(2, b"noise")

    try_apart(tmp_path, "nothing", attempt)
    assert seen == []
    assert capfd.readouterr() == ("", "")


def test_its_refusal_is_the_parents(tmp_path: Path) -> None:
    def attempt() -> None:
        raise InputError("a.json: is wrong")

    with pytest.raises(InputError, match=r"^a\.json: is wrong$"):
        try_apart(tmp_path, "a.json", attempt)


def test_an_error_of_another_kind_is_left_to_the_parent(tmp_path: Path) -> None:
    def attempt() -> None:
        raise KeyError("which the parent meets in its turn")

    try_apart(tmp_path, "a.json", attempt)


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param(lambda: bytearray(8 << 30), id="memory"),
        pytest.param(lambda: torch.ones(8 << 30), id="memory of torch"),
        pytest.param(lambda: os.kill(os.getpid(), signal.SIGSEGV), id="a crash"),
        pytest.param(lambda: [None for _ in iter(int, 1)], id="a loop without end"),
    ],
)
def test_a_child_that_does_not_come_back_is_a_sentence(attempt: Callable[[], Any], tmp_path: Path) -> None:
    assert "reading a.json takes more than" in refused(lambda: try_apart(tmp_path, "a.json", attempt), tmp_path)


def test_a_child_that_only_waits_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.2)
    monkeypatch.setattr(module_apart, "_LONGEST_WAIT", 1)
    monkeypatch.setattr(module_apart, "_limit", lambda memory, seconds: None)
    before = psutil.Process().children()
    refused(lambda: try_apart(tmp_path, "a.json", lambda: time.sleep(600)), tmp_path)
    assert psutil.Process().children() == before


def test_a_child_that_stands_still_is_followed_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that a thread held when the child was forked is never let go there; the next child may have been forked better."""
    monkeypatch.setattr(module_apart, "_STILL", 1)
    tries = tmp_path / "tries"

    def attempt() -> int:
        with open(tries, "ab") as file:
            file.write(b".")
        if tries.stat().st_size < 3:
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        return tries.stat().st_size

    assert module_apart.apart(attempt, memory=1 << 30, seconds=20) == 3


def test_children_that_all_stand_still_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_apart, "_STILL", 1)
    before = psutil.Process().children()
    refused(lambda: try_apart(tmp_path, "a.json", lambda: time.sleep(600)), tmp_path)
    assert psutil.Process().children() == before


def test_a_hub_id_is_not_tried(tmp_path: Path) -> None:
    try_apart("owner/name", "config.json", lambda: os.kill(os.getpid(), signal.SIGSEGV))


def test_a_sound_image_processor_is_what_transformers_loads(tower: Path) -> None:
    assert load_image_processor(tower).to_dict() == AutoImageProcessor.from_pretrained(tower).to_dict()
