"""Measure how long a prediction takes: a category and a pose among many candidates, and a pose alone, beside the plain ways.

The joint task is measured as the search for the winner (``probabilities=False``), as the scores of all candidates in the way
that the backbone can (over a tree, mostly), and as a forward pass for each candidate. A pose is one forward pass; beside it
stands the generation, with a cache, of as many tokens as three angles in words have.

Without --checkpoint the model is random, of the width of `small`. It prefers no answer, so that the search can pass over
fewer candidates than that of a trained model can. Times are of the processor, which other work on the machine changes less than
those of the clock. The memory is the most that the process took, libraries, model, tasks and all.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from pydantic import PositiveInt

from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.data.conversation import IMAGE_TOKEN, object_words
from llava_pose.errors import InputError
from llava_pose.inference.answer_trie import AnswerTrie
from llava_pose.inference.predictor import PosePredictor
from llava_pose.inference.scoring import each_scores
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.processors import load_processor
from llava_pose.pose import categories
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields
from llava_pose.utils.files import write_json

logger = logging.getLogger(__name__)


@dataclass
class PredictConfig:
    """Options of the benchmark."""

    checkpoint: str | None = field(
        default=None, metadata={"help": "The checkpoint to measure; by default a random model."}
    )
    categories: list[PositiveInt] = field(
        default_factory=lambda: [64, 201], metadata={"help": "The numbers of candidates of the joint task."}
    )
    pictures: PositiveInt = field(default=4, metadata={"help": "The pictures that are asked about together."})
    words: PositiveInt = field(
        default=24, metadata={"help": "The tokens of an answer that says three angles in words."}
    )
    rounds: PositiveInt = field(default=2, metadata={"help": "The rounds of each way, of which the fastest counts."})
    vocabulary: PositiveInt = field(default=49_152, metadata={"help": "The rows of the random model's vocabulary."})
    hidden_size: PositiveInt = field(default=576, metadata={"help": "The width of the random model."})
    layers: PositiveInt = field(default=4, metadata={"help": "The layers of the random model."})
    threads: PositiveInt = field(default=1, metadata={"help": "The threads of torch."})
    out: str | None = field(default=None, metadata={"help": "The JSON file to write."})

    def __post_init__(self) -> None:
        check_fields(self)


def random_predictor(config: PredictConfig) -> PosePredictor:
    """Return the tiny base with a larger language model, all random."""
    with tempfile.TemporaryDirectory() as folder:
        base = assemble(AssembleConfig(out=f"{folder}/base", preset="tiny"))
        processor, settings = load_processor(base), transformers.AutoConfig.from_pretrained(base)
        pose_config = LlavaPoseConfig.load(base)
    size, heads = config.hidden_size, max(1, config.hidden_size // 64)
    settings.text_config = transformers.LlamaConfig(
        **{
            **settings.text_config.to_dict(),
            "vocab_size": max(config.vocabulary, len(processor.tokenizer)),
            "hidden_size": size,
            "intermediate_size": size * 8 // 3,
            "num_hidden_layers": config.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 3 if heads % 3 == 0 else heads,
            "head_dim": size // heads,
            "initializer_range": size**-0.5,
        }
    )
    torch.manual_seed(0)
    backbone: Any = transformers.AutoModelForImageTextToText.from_config(settings)
    sizes = {"hidden_size": size, "embedding_size": size}
    model = LlavaPoseForConditionalGeneration(backbone, dataclasses.replace(pose_config, **sizes))
    model.draw_weights()
    return PosePredictor(model, processor)


def some_pictures(count: int) -> list[Image.Image]:
    """Return smooth random pictures."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((128, 128), Image.Resampling.BICUBIC)
        for _ in range(count)
    ]


def candidates_of(count: int) -> dict[str, str]:
    """Return categories and what answers call them; beyond the taxonomy, invented ones."""
    known = {category.name: category.indefinite for category in categories.all_categories()}
    invented = {f"new {name}": f"{words} of a new kind" for name, words in known.items()}
    found = dict(list({**known, **invented}.items())[:count])
    if len(found) < count:
        raise InputError(f"--categories {count}: there are {len(found)} to choose from; give fewer")
    return found


def each_alone(predictor: PosePredictor, picture: Image.Image, called: Sequence[str]) -> int:
    """Return the best candidate by a forward pass for each, picture and all."""
    _, [square] = predictor._squares([picture], None)
    answers = predictor._joint_answers(square, called)
    token = predictor._processor.pose_token_id
    with torch.inference_mode():
        scores, _, _ = each_scores(
            predictor._model, AnswerTrie(answers), answers, token, predictor._pictures([square]), 1
        )
    return int(scores[0].argmax())


def generate_words(predictor: PosePredictor, pictures: Sequence[Image.Image], words: int) -> int:
    """Generate answers of so many tokens with a cache, all pictures in one batch, and return how many came."""
    _, squares = predictor._squares(pictures, None)
    question = [{"role": "user", "content": f"{IMAGE_TOKEN}\nWhat are azimuth, elevation and rotation of the car?"}]
    chats = [
        predictor._processor.encode_chat(question, square, add_generation_prompt=True).input_ids for square in squares
    ]
    if len({len(ids) for ids in chats}) > 1:
        raise InputError("--pictures: this checkpoint's pictures have unlike numbers of tokens; give 1")
    answer = predictor._model.answer(
        torch.from_numpy(np.stack(chats)),
        inputs=predictor._pictures(squares),
        max_new_tokens=words,
        min_new_tokens=words,
        do_sample=False,
        pad_token_id=predictor._processor.tokenizer.pad_token_id,
    )
    return answer.tokens.shape[1]


def joint(
    predictor: PosePredictor, pictures: Sequence[Image.Image], candidates: dict[str, str], config: PredictConfig
) -> dict[str, Any]:
    """Measure the ways to find a category among candidates, and its pose."""
    ways: dict[str, tuple[dict[str, float], Any]] = {
        "search": _timed(
            lambda: predictor.classify(pictures, candidates, probabilities=False), len(pictures), config.rounds
        ),
        "all scores": _timed(lambda: predictor.classify(pictures, candidates), len(pictures), config.rounds),
        "each alone": _timed(lambda: each_alone(predictor, pictures[0], list(candidates.values())), 1, 1),
    }
    searched, scored = ([answer.category for answer in ways[way][1]] for way in ("search", "all scores"))
    return _beside(ways, "search") | {
        "is searched": predictor._can_search,
        "scored by": predictor._scores.__name__,
        "same winners": searched == scored and searched[0] == list(candidates)[ways["each alone"][1]],
    }


def pose(predictor: PosePredictor, pictures: Sequence[Image.Image], config: PredictConfig) -> dict[str, Any]:
    """Measure the ways to find the pose of what is known to be a car."""
    words = [object_words(categories.get("car"))["object"]] * len(pictures)
    ways: dict[str, tuple[dict[str, float], Any]] = {
        "one forward": _timed(lambda: predictor.predict(pictures, words), len(pictures), config.rounds),
        "generation": _timed(lambda: generate_words(predictor, pictures, config.words), len(pictures), config.rounds),
    }
    return _beside(ways, "one forward") | {"tokens": ways["generation"][1]}


def measure(config: PredictConfig) -> dict[str, Any]:
    """Measure all ways, write the figures to the standard output and, if asked for, to the file; return them."""
    torch.set_num_threads(config.threads)
    candidates = {f"joint over {count}": candidates_of(count) for count in config.categories}
    if config.checkpoint is None:
        predictor = random_predictor(config)
    else:
        predictor = PosePredictor.from_checkpoint(config.checkpoint, device="cpu")
    pictures = some_pictures(config.pictures)
    figures = {task: joint(predictor, pictures, those, config) for task, those in candidates.items()}
    figures["pose"] = pose(predictor, pictures, config)
    for task, ways in figures.items():
        sys.stdout.write(f"{task}: {', '.join(f'{way} {_said(value)}' for way, value in ways.items())}\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e3 if sys.platform.startswith("linux") else 1e6)
    sys.stdout.write(f"the process took {peak:.0f} MB at most\n")
    result = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "config": asdict(config) | {"checkpoint": None if config.checkpoint is None else Path(config.checkpoint).name},
        "peak_mb": peak,
        "figures": figures,
    }
    if config.out is not None:
        write_json(config.out, result)
    return result


def _timed(task: Callable[[], Any], pictures: int, rounds: int) -> tuple[dict[str, float], Any]:
    """Return the least milliseconds of processor and clock that a picture took, and what came of it. A first run, in which a
    backbone is also asked what it can, is not counted, unless it is the only one.
    """
    result, times = None, []
    for _ in range(rounds + (rounds > 1)):
        clock, processor = time.perf_counter(), time.process_time()
        result = task()
        times.append((time.process_time() - processor, time.perf_counter() - clock))
    best = min(times[rounds > 1 :])
    return {"ms": 1000 * best[0] / pictures, "clock_ms": 1000 * best[1] / pictures}, result


def _beside(ways: dict[str, tuple[dict[str, float], Any]], ours: str) -> dict[str, Any]:
    return {way: {**times, "times_ours": times["ms"] / ways[ours][0]["ms"]} for way, (times, _) in ways.items()}


def _said(value: Any) -> str:
    return f"{value['ms']:.1f} ms ({value['times_ours']:.1f})" if isinstance(value, dict) else str(value)


main = command(
    PredictConfig,
    measure,
    prog="python scripts/benchmarks/predict.py",
    description="Measure predictions beside the plain ways to make them.",
    example="python scripts/benchmarks/predict.py --checkpoint runs/first --out predict.json",
)

if __name__ == "__main__":
    raise SystemExit(main())
