"""A checkpoint whose files are wrong is one sentence, at once: whatever the files hold, nothing is built of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, ViTImageProcessor

from data_prep.prepare.command import PrepareConfig, prepare
from eval.systems.classifier.model import PoseClassifier, PoseClassifierConfig
from eval.systems.linear_probe.backbone import load_probe_backbone
from eval.systems.network import load_network, load_vision_backbone
from eval.systems.neural_mesh.model import NeuralMesh, NeuralMeshConfig
from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.backbones.tiny import tiny_vision_config
from llava_pose.cli import main
from llava_pose.data.records import read_predictions
from llava_pose.errors import InputError
from llava_pose.inference.predictor import PosePredictor
from llava_pose.model.card import bases_of, part_of, put_part
from llava_pose.model.checkpoint_files import ADAPTER_CONFIG, settings_of_checkpoint
from llava_pose.model.loading import load_full, require_fit, require_tower
from llava_pose.model.processors import load_processor
from llava_pose.train.arguments import ModelArguments
from llava_pose.train.sizes import meta_model
from llava_pose.utils.files import file_digest, weights_digest
from tests.conftest import REPOSITORY

Change = Callable[[Path], Any]
QUICKLY = 20  # seconds, on a machine that does other things as well; what is refused took minutes or all memory


@pytest.fixture
def checkpoint(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "checkpoint"))


SIDES = ("processor_config.json", "image_processor", "size")


def changed(file: str, *path: str, to: Any) -> Change:
    """A change of one value of a JSON file, found by its keys."""

    def change(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        place = values
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = to
        (folder / file).write_text(json.dumps(values))

    return change


def written(file: str, content: bytes) -> Change:
    return lambda folder: (folder / file).write_bytes(content)


def replaced(file: str, make: Callable[[Path], Any]) -> Change:
    """Something else than a file under its name."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return change


CONFIG = {
    "config of another encoding": written("config.json", '{"model_type": "é"}'.encode("latin-1")),
    "config is a list": written("config.json", b'["llava_pose"]'),
    "config is null": written("config.json", b"null"),
    "config is empty": written("config.json", b""),
    "config nested without end": written("config.json", b"[" * 100_000),
    "config is a folder": replaced("config.json", Path.mkdir),
    "config is a fifo": replaced("config.json", os.mkfifo),
    "attention by a kernel of the hub": changed("config.json", "attn_implementation", to="evil/kernel"),
    "attention of a part by a kernel": changed("config.json", "text_config", "_attn_implementation", to="evil/kernel"),
    "attention is a number": changed("config.json", "attn_implementation", to=5),
    "an encoder and a decoder": changed("config.json", "is_encoder_decoder", to=True),
    "quantised by what it is not": changed(
        "config.json", "quantization_config", to={"quant_method": "bitsandbytes", "load_in_4bit": True}
    ),
    "a model within itself": changed("config.json", "text_config", "model_type", to="compact_llava"),
    "heads are true": changed("pose_config.json", "pose_head_attention_heads", to=True),
    "no layer of the tower": changed("config.json", "vision_feature_layer", to=[]),
    "a layer that the tower has not": changed("config.json", "vision_feature_layer", to=10**9),
    "the last layer but one, of other channels": changed("config.json", "vision_feature_layer", to=-2),
    "a layer of the tower twice": changed("config.json", "vision_feature_layer", to=[-1, -1]),
    "strides of zero": changed("config.json", "vision_config", "output_stride", to=0),
    "strides of another tower": changed("config.json", "vision_config", "output_stride", to=8),
    "a model in the language model": changed(
        "config.json", "text_config", "text_config", to={"model_type": "llava", "text_config": {"model_type": "llava"}}
    ),
    "ten million labels": changed("config.json", "num_labels", to=10**7),
    "labels are text": changed("config.json", "vision_config", "num_labels", to="many"),
    "model_type is a number": changed("config.json", "model_type", to=7),
    "text_config is null": changed("config.json", "text_config", to=None),
    "vision_config is null": changed("config.json", "vision_config", to=None),
    "text_config is a list": changed("config.json", "text_config", to=[]),
    "text_config is empty": changed("config.json", "text_config", to={}),
    "text_config of another model": changed("config.json", "text_config", to={"model_type": "llama"}),
    "text_config of no model": changed("config.json", "text_config", "model_type", to="evil"),
    "vocabulary of a trillion": changed("config.json", "text_config", "vocab_size", to=10**12),
    "vocabulary of a million": changed("config.json", "text_config", "vocab_size", to=10**6),
    "negative vocabulary": changed("config.json", "text_config", "vocab_size", to=-5),
    "vocabulary in words": changed("config.json", "text_config", "vocab_size", to="many"),
    "vocabulary with a fraction": changed("config.json", "text_config", "vocab_size", to=600.5),
    "layers of a billion": changed("config.json", "text_config", "num_hidden_layers", to=10**9),
    "layers of a million": changed("config.json", "text_config", "num_hidden_layers", to=10**6),
    "negative layers": changed("config.json", "text_config", "num_hidden_layers", to=-1),
    "no heads": changed("config.json", "text_config", "num_attention_heads", to=0),
    "negative width": changed("config.json", "text_config", "hidden_size", to=-64),
    "width of a tower in words": changed("config.json", "vision_config", "hidden_sizes", to=["a", "b"]),
    "merge in words": changed("config.json", "vision_merge", to="two"),
    "negative merge": changed("config.json", "vision_merge", to=-2),
    "head of a trillion": changed("pose_config.json", "pose_head_hidden_size", to=10**12),
    "negative head": changed("pose_config.json", "pose_head_hidden_size", to=-1),
    "unknown rotation": changed("pose_config.json", "rotation", to="quaternion"),
    "rotation of a list": changed("pose_config.json", "rotation", to=[1]),
    "pose weights cut off": lambda f: os.truncate(f / "pose_head.safetensors", 100),
    "pose weights are a fifo": replaced("pose_head.safetensors", os.mkfifo),
    "pose weights are not there": lambda f: (f / "pose_head.safetensors").unlink(),
    "pose parts without a config": lambda f: (f / "pose_config.json").unlink(),
    "pose parts' config is a fifo": replaced("pose_config.json", os.mkfifo),
    "pose parts' config is a list": written("pose_config.json", b"[]"),
    "pose parts on another connector": changed("pose_config.json", "connector", to="vision_tower.evil"),
    "pose parts on a connector of a number": changed("pose_config.json", "connector", to=7),
    "pose parts on the language model": changed("pose_config.json", "connector", to="causal_lm"),
    "places of a trillion": changed("pose_config.json", "image_places", to=10**12),
    "another file of weights": changed("config.json", "transformers_weights", to="../model.safetensors"),
}
WEIGHTS = {
    "weights cut off": lambda f: os.truncate(f / "model.safetensors", 1000),
    "weights empty": written("model.safetensors", b""),
    "weights with a header of 2^60": written("model.safetensors", (2**60).to_bytes(8, "little") + b"{}"),
    "weights are a fifo": replaced("model.safetensors", os.mkfifo),
    "weights are a folder": replaced("model.safetensors", Path.mkdir),
    "weights are not there": lambda f: (f / "model.safetensors").unlink(),
    "index without a map": lambda f: (
        (f / "model.safetensors").unlink(),
        (f / "model.safetensors.index.json").write_text("{}"),
    ),
    "a weight is NaN": lambda f: set_weight(f, "lm_head", float("nan")),
    "a weight is infinite": lambda f: set_weight(f, "pose_head.linear_2.bias", float("inf"), "pose_head.safetensors"),
}
PROCESSOR = {
    "template without end": written(
        "chat_template.jinja", b"{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "template of a gigabyte": written("chat_template.jinja", b"{{ 'a' * 10**10 }}"),
    "template that is wrong": written("chat_template.jinja", b"{% for %}"),
    "template of another chat": written("chat_template.jinja", b"{{ messages }}"),
    "template is not there": lambda f: (f / "chat_template.jinja").unlink(),
    "pictures of a billion pixels": changed(*SIDES, to={"height": 10**9, "width": 10**9}),
    "pictures of a negative size": changed(*SIDES, to={"height": -1, "width": -1}),
    "size in words": changed(*SIDES, to="large"),
    "means in words": changed("processor_config.json", "image_processor", "image_mean", to=["a", "b", "c"]),
    "means of two colours": changed("processor_config.json", "image_processor", "image_mean", to=[0.5, 0.5]),
    "deviations of zero": changed("processor_config.json", "image_processor", "image_std", to=[0, 0, 0]),
    "unknown filter": changed("processor_config.json", "image_processor", "resample", to=99),
    "patches of zero": changed("processor_config.json", "patch_size", to=0),
    "patches in words": changed("processor_config.json", "patch_size", to="large"),
    "negative patches": changed("processor_config.json", "patch_size", to=-8),
    "merge of a million": changed("processor_config.json", "vision_merge", to=10**6),
    "patches of another tower": changed("processor_config.json", "patch_size", to=16),
    "merge of another model": changed("processor_config.json", "vision_merge", to=2),
    "processor is a list": written("processor_config.json", b"[]"),
    "processor of another encoding": written("processor_config.json", b'{"a": "\xe9"}'),
    "pose token of a billion": changed("pose_config.json", "pose_token_id", to=10**9),
    "no pose token": changed("pose_config.json", "pose_token_id", to=None),
    "image token in words": changed("pose_config.json", "image_token_id", to="image"),
    "negative image token": changed("pose_config.json", "image_token_id", to=-1),
    "another image token": changed("pose_config.json", "image_token_id", to=9),
    "the backbone's image token in words": changed("config.json", "image_token_index", to="image"),
    "the backbone's image token is another": changed("config.json", "image_token_index", to=9),
    "tokenizer is a list": written("tokenizer.json", b"[]"),
    "tokenizer is cut off": lambda f: os.truncate(f / "tokenizer.json", 1000),
    "tokenizer is a fifo": replaced("tokenizer.json", os.mkfifo),
    "tokenizer's config is null": written("tokenizer_config.json", b"null"),
}


def set_weight(folder: Path, name: str, value: float, file: str = "model.safetensors") -> None:
    weights = load_file(folder / file)
    key = next((key for key in weights if key.startswith(name)), min(weights))
    weights[key].view(-1)[0] = value
    save_file(weights, folder / file, metadata={"format": "pt"})


def refused(load: Callable[[], Any], folder: Path) -> str:
    """The sentence, which names the folder or a file in it, and comes at once."""
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        load()
    assert time.monotonic() - began < QUICKLY
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", [pytest.param(d, id=name) for name, d in {**CONFIG, **WEIGHTS, **PROCESSOR}.items()])
def test_a_damaged_checkpoint_is_a_sentence(damage: Change, checkpoint: Path) -> None:
    damage(checkpoint)
    refused(lambda: PosePredictor.from_checkpoint(checkpoint, device="cpu"), checkpoint)


GENERATION: dict[str, Any] = {
    "a search whose code is on the hub": {"penalty_alpha": 0.6, "top_k": 4},
    "ten thousand beams": {"num_beams": 10_000},
    "groups of beams": {"num_beam_groups": 2, "num_beams": 4, "diversity_penalty": 1.0},
    "layers that differ": {"dola_layers": "high"},
    "guidance": {"guidance_scale": 3.0},
    "a cache elsewhere": {"cache_implementation": "offloaded"},
    "texts that end it": {"stop_strings": ["a"]},
    "a penalty in words": {"repetition_penalty": "x"},
    "a last token of a billion": {"forced_eos_token_id": 10**9},
    "an end in words": {"eos_token_id": "x"},
    "ends within ends": {"eos_token_id": [[1]]},
    "ends of a billion": {"eos_token_id": [10**9, -1]},
    "no end": {"min_new_tokens": 10**9},
}


@pytest.mark.parametrize("settings", [pytest.param(values, id=name) for name, values in GENERATION.items()])
def test_settings_of_generation_do_not_matter(settings: dict[str, Any], tiny_base: Path, checkpoint: Path) -> None:
    def answer(folder: Path) -> str:
        predictor = PosePredictor.from_checkpoint(folder, device="cpu")
        return predictor.chat(Image.new("RGB", (64, 64)), [{"role": "user", "content": "What?"}], max_new_tokens=6).text

    for name, value in settings.items():
        changed("generation_config.json", name, to=value)(checkpoint)
    assert answer(checkpoint) == answer(tiny_base)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [pytest.param(d, id=name) for name, d in {**CONFIG, **WEIGHTS}.items()])
def test_a_damaged_base_is_a_sentence(damage: Change, checkpoint: Path) -> None:
    """As llava-pose train loads it."""

    def load() -> None:
        model, processor = load_full(checkpoint, dtype=torch.float32), load_processor(checkpoint)
        require_tower(model, processor, checkpoint)
        require_fit(model, processor, checkpoint)

    damage(checkpoint)
    refused(load, checkpoint)


def test_the_field_and_the_file_are_named(checkpoint: Path) -> None:
    changed("config.json", "text_config", "vocab_size", to=-5)(checkpoint)
    sentence = refused(lambda: load_full(checkpoint), checkpoint)
    assert f"{checkpoint}/config.json: text_config.vocab_size is '-5', not a whole number" in sentence


# backbones of baselines, parts of a base, and networks that are trained already


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``tower``, ``classifier`` and ``mesh``, with random weights."""
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    tower = tiny_vision_config()
    AutoModel.from_config(tower).save_pretrained(root / "tower")
    classifier = PoseClassifierConfig(backbone_config=tower, categories=["car"])
    PoseClassifier(classifier, image_size=(64, 64)).save_pretrained(root / "classifier")
    NeuralMesh(NeuralMeshConfig(backbone_config=tower, image_size=64, vertices=12)).save_pretrained(root / "mesh")
    for name in ("tower", "classifier", "mesh"):
        ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(root / name)
    return root


LOADERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "classifier's backbone": ("tower", load_vision_backbone),
    "probed backbone": ("tower", load_probe_backbone),
    "tower of a base": ("tower", lambda f: assemble(AssembleConfig(out=f"{f}.out", preset="tiny", vision=str(f)))),
    "language model of a base": (
        "tower",
        lambda f: assemble(AssembleConfig(out=f"{f}.out", vision=str(f), language=str(f))),
    ),
    "classifier": ("classifier", lambda f: load_network(f, PoseClassifier, what="classifier", remedy="make one")),
    "neural mesh": ("mesh", lambda f: load_network(f, NeuralMesh, what="neural mesh", remedy="make one")),
}
DAMAGES: dict[str, Change] = {
    **{name: CONFIG[name] for name in ("config is a list", "config is a fifo", "config of another encoding")},
    **{name: CONFIG[name] for name in ("model_type is a number", "another file of weights")},
    **{name: WEIGHTS[name] for name in WEIGHTS if name != "a weight is infinite"},
    "unknown model": changed("config.json", "model_type", to="evil"),
    "only pickled weights": lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
    "an adapter beside it": written("adapter_config.json", b'{"base_model_name_or_path": "elsewhere"}'),
}


@pytest.mark.parametrize("damage", [pytest.param(d, id=name) for name, d in DAMAGES.items()])
@pytest.mark.parametrize(
    "loader",
    [
        pytest.param(name, marks=() if name in ("classifier's backbone", "neural mesh") else pytest.mark.slow)
        for name in LOADERS
    ],
)
def test_a_damaged_network_is_a_sentence(loader: str, damage: Change, networks: Path, tmp_path: Path) -> None:
    part, load = LOADERS[loader]
    folder = Path(shutil.copytree(networks / part, tmp_path / "network"))
    damage(folder)
    refused(lambda: load(folder), folder)


@pytest.mark.parametrize(
    ("part", "path", "value"),
    [
        pytest.param("classifier", ("categories",), ["c"] * 10**6, id="categories of a million"),
        pytest.param("classifier", ("feature_size",), 10**12, id="features of a trillion"),
        pytest.param("classifier", ("head_hidden_size",), -3, id="negative head"),
        pytest.param("classifier", ("pooling",), "max", id="unknown pooling"),
        pytest.param("classifier", ("rotation",), 9, id="rotation of a number"),
        pytest.param("classifier", ("backbone_config",), None, id="no backbone"),
        pytest.param("classifier", ("backbone_config",), "resnet", id="backbone of a word"),
        pytest.param("classifier", ("backbone_config", "model_type"), "evil", id="unknown backbone"),
        pytest.param("mesh", ("vertices",), 10**12, id="vertices of a trillion"),
        pytest.param("mesh", ("vertices",), -1, id="negative vertices"),
        pytest.param("mesh", ("poses",), 10**12, id="poses of a trillion"),
        pytest.param("mesh", ("clutter_size",), "much", id="clutter in words"),
        pytest.param("mesh", ("kind",), "cube", id="unknown kind"),
        pytest.param("mesh", ("stride",), 0, id="stride of zero"),
        pytest.param("mesh", ("backbone_config",), None, id="no backbone of a mesh"),
    ],
)
def test_a_network_with_a_nonsense_config_is_a_sentence(
    part: str, path: tuple[str, ...], value: Any, networks: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(networks / part, tmp_path / "network"))
    changed("config.json", *path, to=value)(folder)
    refused(lambda: LOADERS["classifier" if part == "classifier" else "neural mesh"][1](folder), folder)


# answers that are no numbers


def test_answers_that_are_not_finite_are_counted_and_end_predict_with_1(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], raw_dataset: Any
) -> None:
    """Finite weights from which the network overflows: what is known is written, and counts as a failure later on."""
    raw_dataset.add("none")
    for name in ("one", "two"):
        raw_dataset.add(name, split="val")
    data = prepare(PrepareConfig(str(raw_dataset.root), str(tmp_path / "prepared"), size=64, workers=1))
    folder = Path(shutil.copytree(tiny_base, tmp_path / "overflows"))
    weights = load_file(folder / "pose_head.safetensors")
    weights["pose_head.linear_2.bias"].fill_(3e38)
    weights["pose_head.linear_2.weight"].fill_(3e38)
    save_file(weights, folder / "pose_head.safetensors", metadata={"format": "pt"})
    out = tmp_path / "predictions.jsonl"
    command = ["predict", "--checkpoint", str(folder), "--data", str(data), "--out", str(out)]
    for _ in range(2):  # the second finds all answered, and ends in the same way
        assert main(command) == 1
        said = capsys.readouterr().err
        assert f"{out}: 2 of 2 answers are no poses, for their numbers are not finite; the first is 'car/one/0'" in said
        assert "Traceback" not in said
    assert len(read_predictions(out)) == 2
    assert main(["score", str(out), "--out", str(tmp_path / "scores.json")]) == 0
    assert "not finite), each counted as an error of 180 degrees" in capsys.readouterr().out


def test_what_transformers_says_of_a_config_is_shown_without_control_characters(
    tiny_base: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Its log has a handler of its own, which comes as it is imported."""
    rope = {"rope_type": "\x1b]0;title\x07", "rope_theta": 10_000.0}
    changed("config.json", "text_config", "rope_parameters", to=rope)(checkpoint)
    picture = tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(picture)
    words = ["chat", str(picture), "--checkpoint", str(checkpoint), "--device", "cpu", "--question", "What?"]
    done = subprocess.run(
        [sys.executable, "-m", "llava_pose.cli", *words], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 2
    assert "'rope_type'='\\u001b]0;title\\u0007'" in done.stderr
    assert not set(done.stdout + done.stderr) & {"\x1b", "\x07"}


@pytest.mark.parametrize("kind", ["int64", "uint8", "bool", "float8_e4m3fn", "complex64"])
def test_pose_parts_of_no_usual_numbers_are_a_sentence(kind: str, checkpoint: Path) -> None:
    file = checkpoint / "pose_head.safetensors"
    weights = {name: weight.to(getattr(torch, kind)) for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"pose_head.safetensors: the weight .* is of the type {kind}"):
        load_full(checkpoint)


def test_positions_that_are_no_number_are_a_sentence(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "max_position_embeddings": "x"}))
    with pytest.raises(InputError, match=r"config\.json: max_position_embeddings is 'x'"):
        load_full(checkpoint)


# what stands beside the weights: the model card, and the base that an adapter names

CARD = b"---\ntags: [llava-pose]\nbase_model: [org/base]\n"
BOMB = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 60))
CARDS = {
    "a bomb of merges": CARD + BOMB.encode() + b"---\n",
    "a number to the base of 60": CARD + b"x: 1" + b":1" * 50_000 + b"\n---\n",
    "first lines without end": CARD + b"x: [" + b"a, " * 2_000_000 + b"]\n---\n",
    "nested without end": CARD + b"x: " + b"[" * 100_000 + b"\n---\n",
    "marks without end": CARD + b"---\n" + b"<!-- scores -->\n" * 500_000,
}


@pytest.mark.parametrize("name", [*CARDS, "a sparse file", "a fifo"])
def test_a_model_card_of_any_kind_is_looked_at_quickly(name: str, tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    if name == "a fifo":
        os.mkfifo(card)
    else:
        card.write_bytes(CARDS.get(name, CARD + b"---\n"))
        if name == "a sparse file":
            os.truncate(card, 1 << 40)
    began = time.monotonic()
    assert set(bases_of(tmp_path)) <= {"org/base"}
    assert part_of(tmp_path, "scores") is None
    with pytest.raises(InputError, match=r"README\.md: there is no model card with <!-- scores -->"):
        put_part(tmp_path, "scores", "new")
    assert time.monotonic() - began < QUICKLY


def test_settings_of_an_adapter_that_is_nested_without_end_name_no_base(checkpoint: Path) -> None:
    (checkpoint / ADAPTER_CONFIG).write_bytes(b"[" * 100_000)
    assert settings_of_checkpoint(str(checkpoint), None)["base_digest"] is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("pose_head_hidden_size", 2**31), ("embedding_size", 7), ("hidden_size", 7), ("connector", "nope")],
)
def test_a_dry_run_refuses_pose_parts_that_do_not_fit(field: str, value: Any, checkpoint: Path) -> None:
    changed("pose_config.json", field, to=value)(checkpoint)
    refused(lambda: meta_model(checkpoint, ModelArguments(model=str(checkpoint))), checkpoint)


@pytest.mark.parametrize("name", ["other_config.json", "model.safetensors"])
def test_a_hole_of_a_terabyte_is_not_read_for_its_digest(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert weights_digest(tmp_path)
    (tmp_path / name).write_bytes(b"data")
    os.truncate(tmp_path / name, 1 << 40)
    with pytest.raises(InputError, match="hardly anything of the file is there"):
        weights_digest(tmp_path)


def test_a_file_with_holes_in_it_has_the_digest_of_its_content(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        for start in range(0, 80 << 20, 8 << 20):
            file.seek(start)
            file.write(b"a" * (2 << 20))
    (tmp_path / "whole").write_bytes((tmp_path / "holes").read_bytes())
    assert file_digest(tmp_path / "holes") == file_digest(tmp_path / "whole")
