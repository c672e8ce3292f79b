"""No code that a checkpoint brings along runs, whatever answers to a question would be, and no question is asked."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTImageProcessor, ViTModel

from llava_pose.backbones.tiny import tiny_tokenizer
from llava_pose.cli import main
from llava_pose.data.records import ObjectRecord, Pose, write_records
from llava_pose.errors import InputError
from llava_pose.model.loading import load_full
from llava_pose.model.processors import load_processor
from llava_pose.train.trainable import add_lora
from scripts import convert_deit3, fetch_small_weights

Change = Callable[[Path, Path], None]


class Hostile:
    """A pickle of it writes a file when it is read."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.canary, "ran")


def change_json(file: Path, **values: Any) -> None:
    old = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**old, **values}))


def write_code(folder: Path, canary: Path, name: str = "evil.py") -> None:
    """A module that writes the canary as it is imported, with a class for whatever asks for one."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\ndef generate(*a, **k): pass\n")


AUTO = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor"), "evil.Evil")
AUTO |= {"AutoProcessor": "evil.Evil", "AutoFeatureExtractor": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}


def of_an_unknown_model(folder: Path, canary: Path) -> None:
    write_code(folder, canary)
    change_json(folder / "config.json", model_type="evil", auto_map=AUTO)


def of_a_known_model(folder: Path, canary: Path) -> None:
    write_code(folder, canary)
    change_json(folder / "config.json", auto_map=AUTO)


def of_a_part_of_the_model(folder: Path, canary: Path) -> None:
    write_code(folder, canary)
    parts = {name: {"model_type": "evil", "auto_map": AUTO} for name in ("vision_config", "text_config")}
    change_json(folder / "config.json", **parts)


def of_the_tokenizer(folder: Path, canary: Path) -> None:
    write_code(folder, canary)
    change_json(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map=AUTO)


def of_the_image_processor(folder: Path, canary: Path) -> None:
    write_code(folder, canary)
    for name in ("preprocessor_config.json", "processor_config.json"):
        change_json(folder / name, image_processor_type="Evil", auto_map=AUTO, processor_class="Evil")
    change_json(folder / "processor_config.json", image_processor={"image_processor_type": "Evil", "auto_map": AUTO})


def of_generation(folder: Path, canary: Path) -> None:
    write_code(folder, canary, "custom_generate/generate.py")
    change_json(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True)


def in_pickled_weights(folder: Path, canary: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.unlink()
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin"):
        torch.save({"weight": Hostile(canary)}, folder / name)


def in_a_plain_pickle(folder: Path, canary: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.write_bytes(pickle.dumps(Hostile(canary)))


CHANGES = [
    of_an_unknown_model,
    of_a_known_model,
    of_a_part_of_the_model,
    of_the_tokenizer,
    of_the_image_processor,
    of_generation,
    in_pickled_weights,
    in_a_plain_pickle,
]
MUST_REFUSE = {of_an_unknown_model, in_pickled_weights, in_a_plain_pickle}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A folder with a good ``tower``, ``language``, ``base`` and ``adapter``, and data for each command."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(**small, image_size=32, patch_size=16)).save_pretrained(root / "tower")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "tower")
    tokenizer = tiny_tokenizer(root / "tokenizer")
    LlamaForCausalLM(LlamaConfig(**small, vocab_size=len(tokenizer) + 8)).save_pretrained(root / "language")
    tokenizer.save_pretrained(root / "language")
    for name in ("base", "llava"):
        shutil.copytree(tiny_base, root / name)
    model = add_lora(load_full(tiny_base, dtype=torch.float32), r=2, alpha=4, dropout=0.0, tune_vision=False)
    model.save_pretrained(root / "adapter")
    load_processor(tiny_base).save_pretrained(root / "adapter")
    record = ObjectRecord(
        "car/none.png", "car/none/0", "car", Pose(0.1, 0.2, 0.3, 4.0, 8.0, 8.0), 300.0, 16, 16, (1.0, 1.0, 15.0, 15.0)
    )
    for split in ("train", "val"):  # its picture is not there: whatever loads a checkpoint ends soon after
        write_records(root / "data", split, [record])
    chat = [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": "The car is at <pose6D>."}]
    sample = {
        "id": "one",
        "image": "train/car/none.png",
        "conversations": chat,
        "width": 16,
        "height": 16,
        "viewport": 300.0,
    }
    (root / "train.json").write_text(json.dumps([{**sample, "poses": [record.pose.to_dict()]}]))
    return root


def commands(parts: Path, folder: Path, out: Path) -> dict[str, tuple[str, list[str]]]:
    """The commands that read a checkpoint: which part is made hostile, and the words."""
    data = ["--data", str(parts / "data")]
    run = [*data, "--output-dir", str(out), "--max-steps", "1", "--use-cpu", "true"]
    tower, language, made = str(parts / "tower"), str(parts / "language"), ["--out", str(out)]
    return {
        "predict": ("base", ["predict", "--checkpoint", str(folder), *data, "--out", str(out / "p.jsonl")]),
        "predict an adapter": (
            "adapter",
            ["predict", "--checkpoint", str(folder), *data, "--out", str(out / "p.jsonl")],
        ),
        "train": ("base", ["train", "--model", str(folder), "--train-json", str(parts / "train.json"), *run]),
        "merge": ("adapter", ["merge", "--checkpoint", str(folder), *made]),
        "merge into": ("base", ["merge", "--checkpoint", str(parts / "adapter"), "--base", str(folder), *made]),
        "assemble --vision": ("tower", ["assemble", "--vision", str(folder), "--language", language, *made]),
        "assemble --language": ("language", ["assemble", "--vision", tower, "--language", str(folder), *made]),
        "assemble --llava": ("llava", ["assemble", "--llava", str(folder), *made]),
        "assemble --preset": ("tower", ["assemble", "--preset", "tiny", "--vision", str(folder), *made]),
        "classifier": ("tower", ["classifier", "--backbone", str(folder), *run]),
        "neural-mesh": ("tower", ["neural-mesh", "--backbone", str(folder), *run]),
        "linear-probing": (
            "tower",
            ["linear-probing", "--backbones", f"evil={folder}", *data, "--output-dir", str(out)],
        ),
    }


NAMES = [
    *("predict", "predict an adapter", "train", "merge", "merge into", "assemble --vision", "assemble --language"),
    *("assemble --llava", "assemble --preset", "classifier", "neural-mesh", "linear-probing"),
]


# every command meets unknown code and pickles, and two of them meet everything, at the usual speed of the tests
QUICK = [
    (name, change)
    for name in NAMES
    for change in CHANGES
    if name in ("predict", "assemble --language") or change in (of_an_unknown_model, in_pickled_weights)
]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(n, c, id=f"{n}-{c.__name__}", marks=() if (n, c) in QUICK else pytest.mark.slow)
        for n in NAMES
        for c in CHANGES
    ],
)
def test_no_code_of_a_checkpoint_runs_and_no_question_is_asked(
    name: str,
    change: Change,
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, canary, answers = tmp_path / "checkpoint", tmp_path / "canary", tmp_path / "answers"
    part, words = commands(parts, folder, tmp_path / "out")[name]
    shutil.copytree(parts / part, folder)
    change(folder, canary)
    answers.write_text("y\n" * 50)
    with open(answers) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code = main(words)
    said = capfd.readouterr()
    assert not canary.exists()
    assert "[y/N]" not in said.out + said.err
    assert "Traceback" not in said.err
    if code != 0:
        assert code == 2
        assert "error: " in said.err
    if change in MUST_REFUSE and (part != "adapter" or change is not of_an_unknown_model):
        assert code == 2
        assert str(folder) in said.err


def test_no_question_is_asked_at_a_terminal_that_says_yes(parts: Path, tmp_path: Path) -> None:
    """As a user starts it, with ``echo y |`` before it."""
    folder, canary = tmp_path / "checkpoint", tmp_path / "canary"
    shutil.copytree(parts / "tower", folder)
    of_an_unknown_model(folder, canary)
    words = ["assemble", "--vision", str(folder), "--language", str(parts / "language"), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "llava_pose.cli", *words], input="y\n" * 9, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert not canary.exists()
    assert "Traceback" not in done.stderr
    assert "no checkpoint's code is run here" in done.stderr


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "a/../../b.safetensors", "C:\\x", "", 7])
@pytest.mark.parametrize("command", ["predict", "assemble --vision"])
def test_an_index_does_not_lead_out_of_its_folder(
    command: str, name: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    part, words = commands(parts, folder, tmp_path / "out")[command]
    shutil.copytree(parts / part, folder)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")  # which a way out would find
    index = {"metadata": {"total_size": 1}, "weight_map": {"weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert main(words) == 2
    assert f"{folder}/model.safetensors.index.json: the file name " in capsys.readouterr().err


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}}, id="auto_mapping"),
        pytest.param({"peft_type": "EVIL"}, id="unknown kind"),
        pytest.param({"target_modules": "(a+)+$"}, id="regex without end"),
        pytest.param({"target_modules": ["(a+)+$", 7]}, id="targets of numbers"),
        pytest.param({"rank_pattern": {"(a+)+$": 8}}, id="pattern without end"),
        pytest.param({"init_lora_weights": "pissa"}, id="long initialisation"),
        pytest.param({"layer_replication": [[0, 1000000000]]}, id="layers without end"),
        pytest.param({"r": 10**12}, id="rank of a trillion"),
        pytest.param({"r": -4}, id="negative rank"),
        pytest.param({"r": "four"}, id="rank in words"),
        pytest.param({"lora_alpha": "NaN"}, id="scale in words"),
        pytest.param({"lora_alpha": float("nan")}, id="scale that is no number"),
        pytest.param({"modules_to_save": 7}, id="modules of a number"),
        pytest.param({"base_model_name_or_path": ["a"]}, id="base of a list"),
        pytest.param({"base_model_name_or_path": "/no/such/base"}, id="base that is not there"),
    ],
)
def test_an_adapter_with_a_nonsense_configuration_is_a_sentence(
    values: dict[str, Any], parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(parts / "adapter", folder)
    change_json(folder / "adapter_config.json", **values)
    assert main(commands(parts, folder, tmp_path / "out")["predict an adapter"][1]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert str(folder) in said.rstrip("\n").splitlines()[-1]


@pytest.mark.parametrize("pickled", ["torch.save", "plain pickle"])
@pytest.mark.parametrize("script", ["convert_deit3", "fetch_small_weights"])
def test_a_hostile_pickle_of_published_weights_is_a_sentence(script: str, pickled: str, tmp_path: Path) -> None:
    file, canary = tmp_path / "weights.pth", tmp_path / "canary"
    if pickled == "torch.save":
        torch.save({"model": Hostile(canary)}, file)
    else:
        file.write_bytes(pickle.dumps(Hostile(canary)))
    read = convert_deit3.read_state_dict if script == "convert_deit3" else fetch_small_weights.load_state_dict
    with pytest.raises(InputError, match=str(file)):
        read(file)
    assert not canary.exists()
