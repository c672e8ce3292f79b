"""Families of vision-language models, from `assemble` to the merged checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.backbones.merge import MergeConfig, merge
from llava_pose.backbones.probe import plain_inputs, probe_chat
from llava_pose.data.collator import SAMPLE_NAMES, PoseCollator
from llava_pose.data.dataset import PoseDataset
from llava_pose.inference.answer_trie import AnswerTrie
from llava_pose.inference.predictor import PosePredictor
from llava_pose.inference.scoring import each_scores
from llava_pose.model.loading import load_full, load_model
from llava_pose.model.pictures import accepted_names, token_types
from llava_pose.model.processors import load_processor
from llava_pose.train.trainable import freeze_for
from tests.llava_pose.conftest import RECIPE, TrainingData, run_training
from tests.llava_pose.through_the_door import parts_that_train
from tests.llava_pose.vlm_families import FAMILIES

FAST = ("llava", "qwen3_vl", "gemma3", "idefics3")
CANDIDATES = {"car": "a car", "cup": "a cup", "scissors": "a pair of scissors", "cart": "a cart"}


@dataclass(frozen=True)
class Made:
    """A family's model, its base, and a short LoRA run on it."""

    source: Path
    base: Path
    run: Path
    samples: list[dict[str, Any]]
    data: Path


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAMILIES],
)
def made(request, training_data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("family")
    source = FAMILIES[request.param].save(folder / "source")
    base = assemble(AssembleConfig(out=str(folder / "base"), vlm=str(source), pose_head_hidden_size=16))
    samples = [sample for sample in training_data.samples if sample["poses"]][:2]
    values = {
        **RECIPE,
        "model": str(base),
        "data": str(training_data.prepared),
        "train_json": str(training_data.write(folder / "train.json", samples)),
        "output_dir": str(folder / "run"),
        "cache_dir": str(folder / "features"),
        "flip": False,
    }
    return Made(source, base, run_training(values), samples, training_data.prepared)


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    small = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(2)]
    sizes = ((64, 64), (120, 90))
    return [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one, size in zip(small, sizes, strict=True)]


def test_before_training_its_logits_are_the_plain_models(made: Made):
    plain = AutoModelForImageTextToText.from_pretrained(made.source).eval()
    ours, processor = load_model(made.base), load_processor(made.base)
    chat = probe_chat(processor)
    rows = plain.get_output_embeddings().weight.shape[0]
    ids = torch.from_numpy(chat.input_ids)[None]
    with torch.inference_mode():
        expected = plain(**plain_inputs(plain, chat, ours.pose_config.image_token_id)).logits
        found = ours(input_ids=ids, attention_mask=torch.ones_like(ids), **chat.pictures).logits
    torch.testing.assert_close(found[..., :rows], expected, rtol=1e-4, atol=1e-4)


def test_three_steps_make_the_loss_smaller_and_are_loaded_again(made: Made):
    log = [json.loads(line)["loss"] for line in (made.run / "metrics.jsonl").read_text().splitlines()]
    assert log[2] < log[0]
    model = load_model(made.run)
    assert any(bool(weight.any()) for name, weight in model.named_parameters() if "lora_B" in name)
    assert bool(model.pose_token_output.change.any())
    assert bool(model.pose_token_embedding.change.any())


def test_gradients_reach_every_part(made: Made):
    model, processor = load_full(made.base, dtype=torch.float32), load_processor(made.base)
    freeze_for(model, language="full", tune_embeddings=True, tune_vision=True)
    data = PoseDataset(made.samples, made.data, processor)
    batch = PoseCollator(processor)([data[index] for index in range(len(data))])
    del batch[SAMPLE_NAMES]
    model.train()(**batch).loss.backward()
    for name, part in parts_that_train(model).items():
        assert any(p.grad is not None and bool(p.grad.any()) for p in part.parameters()), name
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in part.parameters()), name


def test_two_pictures_are_one_chat(made: Made):
    """As the backbone's own processor and forward have it; they are learned beside a sample of one, and asked about."""
    plain = AutoModelForImageTextToText.from_pretrained(made.source).eval()
    model, processor = load_full(made.base, dtype=torch.float32), load_processor(made.base)
    shown = [{"type": "image", "image": picture} for picture in pictures()]
    turns = [{"role": "user", "content": [*shown, {"type": "text", "text": "Which of them faces left?"}]}]
    chat = processor.encode_chat(turns, pictures(), add_generation_prompt=True)
    own = processor.processor.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert own["input_ids"][0].tolist() == chat.input_ids.tolist()
    at_image = own["input_ids"] == model.pose_config.image_token_id
    taken = {name: value for name, value in own.items() if name in accepted_names(plain)}
    with torch.inference_mode():
        expected = plain(**taken | token_types(accepted_names(plain), at_image)).logits
        ids = torch.from_numpy(chat.input_ids)[None]
        found = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **chat.pictures).logits
    torch.testing.assert_close(found[..., : expected.shape[-1]], expected, rtol=1e-4, atol=1e-4)

    texts = ("<image>\nThis is a car.", "Yes.", "<image>\nAnd here?", "Here at <pose6D>, in picture 1 at <pose6D>.")
    both = {
        **made.samples[0],
        "id": "both",
        "image": [sample["image"] for sample in made.samples],
        "conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)],
        "poses": [{**made.samples[1]["poses"][0], "picture": 1}, made.samples[0]["poses"][0]],
    }
    batch = PoseCollator(processor)(list(PoseDataset([made.samples[0], both], made.data, processor)))
    del batch[SAMPLE_NAMES]
    freeze_for(model, language="full", tune_embeddings=True, tune_vision=True)
    batch["pixel_values"].requires_grad_(True)
    model.train()(**batch).loss.backward()
    of_pixels = batch["pixel_values"].grad.flatten()
    assert bool(of_pixels[: len(of_pixels) // 4].any())
    assert bool(of_pixels[-(len(of_pixels) // 4) :].any())
    for part in (model.pose_head, model.decoder, model.tower):
        assert any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())

    predictor = PosePredictor.from_checkpoint(made.run, device="cpu")
    question = [{"role": "user", "content": "How is the car in the second picture turned?"}]
    answer = predictor.chat(pictures(), question, max_new_tokens=4)
    assert len(answer.poses) == len(answer.pictures) == answer.text.count("<pose6D>")


def test_a_batch_answers_as_its_members_alone(made: Made):
    predictor = PosePredictor.from_checkpoint(made.run, device="cpu")
    objects = ["car", "pair of scissors"]
    together = predictor.predict(pictures(), objects)
    for picture, name, answer in zip(pictures(), objects, together, strict=True):
        [alone] = predictor.predict([picture], [name])
        assert answer.pose.angles == pytest.approx(alone.pose.angles, abs=1e-3)
        assert answer.confidence == pytest.approx(alone.confidence, abs=1e-4)
    assert together[0].pose.angles != together[1].pose.angles


def test_categories_score_as_each_answer_alone(made: Made):
    predictor = PosePredictor.from_checkpoint(made.run, device="cpu")
    together = predictor.classify(pictures(), CANDIDATES)
    for picture, answer in zip(pictures(), together, strict=True):
        _, [square] = predictor._squares([picture], None)
        answers = predictor._joint_answers(square, list(CANDIDATES.values()))
        with torch.inference_mode():
            scores, _, _ = each_scores(
                predictor._model,
                AnswerTrie(answers),
                answers,
                predictor._processor.pose_token_id,
                predictor._pictures([square]),
                1,
            )
        expected = dict(zip(CANDIDATES, scores[0].softmax(-1).tolist(), strict=True))
        assert answer.probabilities == pytest.approx(expected, abs=1e-4)


def test_the_states_of_an_answer_are_those_of_teacher_forcing(made: Made):
    model, processor = load_model(made.run), load_processor(made.run)
    question = [{"role": "user", "content": "<image>\nWhat is this and what is its pose?"}]
    chat = processor.encode_chat(question, pictures()[1], add_generation_prompt=True)
    ids = torch.from_numpy(chat.input_ids)[None]
    answer = model.answer(
        ids, inputs=chat.pictures, max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0
    )
    whole = torch.cat([ids, answer.tokens], 1)
    with torch.inference_mode():
        forced = model(input_ids=whole, attention_mask=torch.ones_like(whole), **chat.pictures).states
    start = ids.shape[1] - 1
    torch.testing.assert_close(answer.states[0], forced[0, start : start + 5], rtol=1e-3, atol=1e-3)


# It answers all families, for the import of transformers takes longer than an answer
_PLAIN = """
import sys, torch
from transformers import AutoModelForImageTextToText
for line in sys.stdin:
    checkpoint, given, found = line.split()
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    inputs, options = torch.load(given)
    with torch.inference_mode():
        torch.save((model(**inputs).logits, model.generate(**inputs, **options)), found)
    assert not any(name.startswith("llava_pose") for name in sys.modules)
    print("done", flush=True)
"""


@pytest.fixture(scope="module")
def plain_transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., None]]:
    """Logits and an answer by transformers alone: of a checkpoint, of the file with its inputs, into a file."""
    folder = tmp_path_factory.mktemp("plain")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", _PLAIN]
    with (
        (folder / "errors").open("w") as errors,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):

        def ask(*paths: Path) -> None:
            print(*paths, file=process.stdin, flush=True)
            assert process.stdout.readline() == "done\n", (folder / "errors").read_text()

        yield ask


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_merged_it_is_a_plain_model_that_says_the_token_by_itself(
    made: Made, plain_transformers: Callable[..., None], tmp_path: Path, kind: str
):
    """In a process that has imported nothing of ours."""
    checkpoint = made.run if kind == "adapter" else fully_tuned(made.base, tmp_path / "full")
    merged = merge(MergeConfig(checkpoint=str(checkpoint), out=str(tmp_path / "merged")))
    before, processor = load_model(checkpoint, dtype=torch.float32), load_processor(checkpoint)
    assert not bool(load_model(merged).pose_token_output.change.any())
    inputs = plain_inputs(before.vlm, probe_chat(processor), before.pose_config.image_token_id)
    greedy = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        expected = before.vlm(**inputs).logits
        said = before.vlm.generate(**inputs, **greedy)
    assert (before.pose_config.pose_token_id in said[0, inputs["input_ids"].shape[1] :]) or kind == "adapter"
    torch.save((inputs, greedy), tmp_path / "inputs.pt")
    plain_transformers(merged, tmp_path / "inputs.pt", tmp_path / "found.pt")
    logits, generated = torch.load(tmp_path / "found.pt")
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(generated, said)


def fully_tuned(base: Path, folder: Path) -> Path:
    """Save a full checkpoint whose weights are all stirred, and that is more inclined to say `<pose6D>` than anything else."""
    model, processor = load_model(base, dtype=torch.float32), load_processor(base)
    torch.manual_seed(7)
    chat = probe_chat(processor)
    ids = torch.from_numpy(chat.input_ids)[None]
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() >= 2:
                weight.add_(torch.randn_like(weight) * 0.02)
        model.pose_token_embedding.change.normal_(std=0.3)
        last = model(input_ids=ids, attention_mask=torch.ones_like(ids), **chat.pictures).states[0, -1]
        model.pose_token_output.change[0] = 100 * last / last.norm()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
