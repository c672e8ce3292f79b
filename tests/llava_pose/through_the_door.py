"""One model after another through the project's own door: assemble, load, a training step, and every way to ask it.

The door says what a backbone can; here that is held against the plain way. What it says is one of:

right     all is as the plain model has it, and categories are scored over a tree
slower    the same, by a slower exact way, which is named
refused   one sentence of ours
not here  transformers does not build it in this place: a package is missing, or it is no model that builds by a config
wrong     it was let in, and something is not as the plain model has it: a bug of ours
crashed   it raised something that is no sentence of ours: a bug of ours, too
"""

from __future__ import annotations

import copy
import gc
import shutil
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, ViTImageProcessor

from llava_pose.backbones.assemble import AssembleConfig, assemble
from llava_pose.data.conversation import IMAGE_TOKEN, JOINT_ANSWER, JOINT_QUESTIONS, POSE_TOKEN
from llava_pose.errors import InputError, RunError
from llava_pose.inference.answer_trie import AnswerTrie
from llava_pose.inference.predictor import PosePredictor
from llava_pose.inference.scoring import each_scores
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.train.trainable import freeze_for
from llava_pose.utils.apart import TooMuchError, apart
from tests.llava_pose.shrunken import SIDE, causal_kinds, drawn, picture_kinds, shrunken, tower_kinds
from tests.llava_pose.shrunken_whole import save_whole

Kind = Literal["language", "tower", "whole"]
CANDIDATES = {"car": "a car", "scissors": "a pair of scissors", "cart": "a cart"}
SECONDS, MEMORY = 60, 6 << 30
_PLAIN = "does not take a picture and a question"
_WAYS = {"tree_scores": "tree", "cached_scores": "repeated beginning", "each_scores": "one at a time"}


@dataclass(frozen=True)
class Outcome:
    """What came of one model.

    Attributes:
        result: one of those above.
        said: by which way, in which sentence, or what went wrong.
        trace: of a crash.
    """

    result: Literal["right", "slower", "refused", "not here", "wrong", "crashed"]
    said: str = ""
    trace: str = ""


class _NotHere(Exception):
    """transformers does not build it."""


class _Wrong(AssertionError):
    """The door let it in, and it is not right."""


def every() -> list[str]:
    """Return the names of all models, such as language/llama, tower/vit and whole/llava."""
    kinds = {"language": causal_kinds(), "tower": tower_kinds(), "whole": picture_kinds()}
    return [f"{what}/{kind}" for what, of_it in kinds.items() for kind in of_it]


def outcome(name: str, shared: Path) -> Outcome:
    """Return what comes of a model, in a process of its own within limits of time and memory.

    Args:
        name: one of :func:`every`.
        shared: where :func:`make_shared` has written.
    """
    what, _, kind = name.partition("/")
    try:
        return apart(lambda: _tried(cast(Kind, what), kind, shared), memory=MEMORY, seconds=SECONDS)
    except TooMuchError as error:
        return Outcome("crashed", str(error))


def make_shared(folder: Path) -> Path:
    """Write what all models share: a tokenizer, and the small tower and language model that the other part is joined with."""
    from llava_pose.backbones.tiny import tiny_tokenizer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    tiny_tokenizer(folder / "tokenizer").save_pretrained(folder / "tokenizer")
    _save_tower("vit", folder / "tower", folder)
    _save_language("llama", folder / "language", folder)
    with tempfile.TemporaryDirectory() as trial:  # once here, so that what is imported is there in every child
        (Path(trial) / "part").symlink_to(folder / "language")
        _passed("language", Path(trial), folder)
    gc.freeze()  # a child's collector would copy every page that it looks at
    return folder


def _tried(what: Kind, kind: str, shared: Path) -> Outcome:
    folder = Path(tempfile.mkdtemp(prefix="backbone-"))
    try:
        try:
            _save(what, kind, folder / "part", shared)
        except Exception as error:  # noqa: BLE001  # whatever a model raises that is not to be built
            return Outcome("not here", _line(error), traceback.format_exc()[-3000:])
        return _passed(what, folder, shared)
    except (InputError, RunError) as error:
        if what == "whole" and _PLAIN in str(error):  # the model by itself, which is badly shrunk
            return Outcome("not here", str(error).partition(_PLAIN)[2])
        return Outcome("refused", str(error).replace(str(folder / "part"), kind).replace(f"{folder}/", ""))
    except _NotHere as error:
        return Outcome("not here", str(error))
    except _Wrong as error:
        return Outcome("wrong", str(error))
    except Exception as error:  # noqa: BLE001  # which is what is looked for
        return Outcome("crashed", _line(error), traceback.format_exc()[-3000:])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _save(what: Kind, kind: str, folder: Path, shared: Path) -> None:
    {"language": _save_language, "tower": _save_tower, "whole": save_whole}[what](kind, folder, shared)


def _save_language(kind: str, folder: Path, shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer")
    config = shrunken(kind, tokenizer)
    if hasattr(config, "is_decoder"):  # else an encoder such as BERT looks ahead, and is refused
        config.is_decoder = True
    model = drawn(AutoModelForCausalLM.from_config(config))
    with torch.inference_mode():
        if not model(input_ids=torch.arange(40, 60)[None]).logits.isfinite().all():
            raise ValueError("its logits are not finite so small")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _save_tower(kind: str, folder: Path, shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizer")
    drawn(AutoModel.from_config(shrunken(kind, tokenizer))).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def _passed(what: Kind, folder: Path, shared: Path) -> Outcome:
    """Assemble, load, train and ask; return which way it goes.

    Raises:
        InputError: it is refused.
        _Wrong: it is let in, and not right.
    """
    part = folder / "part"
    parts = {
        "language": {"vision": shared / "tower", "language": part},
        "tower": {"vision": part, "language": shared / "language"},
        "whole": {"vlm": part},
    }[what]
    given = {name: str(path) for name, path in parts.items()}
    base = assemble(AssembleConfig(out=str(folder / "base"), pose_head_hidden_size=16, **given))
    predictor = PosePredictor.from_checkpoint(base, device="cpu")
    if what == "language":
        _words_as_plain(predictor, folder / "part")
    if what == "tower":
        _patches_in_their_places(predictor)
    _gradients(predictor)
    if what == "tower":  # it is the language model that answers
        return Outcome("right")
    _batch_as_alone(predictor)
    ways = [_choice_as_each_alone(predictor)]
    _answer_as_forced(predictor)
    if not predictor._can_cache:
        ways.append("no cache to answer")
    return Outcome("right" if ways == ["tree"] else "slower", ", ".join(ways))


def _near(found: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 1e-3) -> None:
    size = max(1e-6, float(expected.abs().max()))
    share = float((found - expected).abs().max()) / size
    if not share <= tolerance:
        raise _Wrong(f"{what}, by {share:.1e}")


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(3)
    small = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(2)]
    sizes = ((64, 64), (120, 90))
    return [Image.fromarray(one).resize(size, Image.Resampling.BICUBIC) for one, size in zip(small, sizes, strict=True)]


@torch.inference_mode()
def _words_as_plain(predictor: PosePredictor, folder: Path) -> None:
    """Text alone gives the logits of the plain language model, and none knows what comes after it."""
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(40, 60)[None]
    expected = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    if not expected.isfinite().all():
        raise _NotHere("its logits are not finite so small")
    found = predictor._model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    _near(found[..., : expected.shape[-1]], expected, "logits of a text differ from the plain model's")
    changed = ids.clone()
    changed[:, -4:] += 100
    later = predictor._model(input_ids=changed, attention_mask=torch.ones_like(ids)).logits
    _near(later[:, :-4], found[:, :-4], "a word's logits depend on later words")


@torch.inference_mode()
def _patches_in_their_places(predictor: PosePredictor) -> None:
    """What changes in a quarter of the picture changes that quarter of the patches most.

    With weights as small as a fifth: random ones of full size mix the patches too well.
    """
    model: Any = copy.deepcopy(predictor._model.vlm.base_model)
    for weight in model.vision_tower.parameters():
        if weight.dim() >= 2:
            weight.mul_(0.2)
    plain = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    before = model.extract_patches(plain)
    _, rows, columns, _ = before.shape
    if rows != columns:
        raise _Wrong(f"a square picture has {rows} x {columns} patches")
    states = model.vision_tower(plain, output_hidden_states=True).hidden_states[-1]
    half = SIDE // 2
    if rows < 2 or states.dim() == 4:  # a map already, whose cells look far around
        return
    for down in (0, 1):
        for right in (0, 1):
            pixels = plain.clone()
            at_down, at_right = (slice(half * place + 8, half * place + 24) for place in (down, right))
            pixels[..., at_down, at_right] = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(5))
            change = (model.extract_patches(pixels) - before).norm(dim=-1)[0]
            cells = change[: rows // 2 * 2, : columns // 2 * 2].reshape(2, rows // 2, 2, columns // 2).sum((1, 3))
            if int(cells.argmax()) != 2 * down + right:
                raise _Wrong(f"a change in quarter {2 * down + right} of a picture shows most in {int(cells.argmax())}")


def _batch_as_alone(predictor: PosePredictor) -> None:
    objects = ["car", "pair of scissors"]
    together = predictor.predict(pictures(), objects)
    for picture, name, answer in zip(pictures(), objects, together, strict=True):
        [alone] = predictor.predict([picture], [name])
        one, other = (torch.tensor([*a.pose.angles, a.confidence]) for a in (alone, answer))
        turned = (one - other + torch.pi) % (2 * torch.pi) - torch.pi
        _near(one + turned, one, "a batch answers otherwise than its members alone")


@torch.inference_mode()
def _choice_as_each_alone(predictor: PosePredictor) -> str:
    """Return the way in which categories are scored, which gives what a pass for each gives."""
    names, picture = list(CANDIDATES), pictures()[1]
    [answer] = predictor.classify([picture], CANDIDATES)
    [winner] = predictor.classify([picture], CANDIDATES, probabilities=False)
    _, [square] = predictor._squares([picture], None)
    answers = predictor._joint_answers(square, list(CANDIDATES.values()))
    token, inputs = predictor._processor.pose_token_id, predictor._pictures([square])
    scores, _, _ = each_scores(predictor._model, AnswerTrie(answers), answers, token, inputs, 1)
    assert answer.probabilities is not None
    found = torch.tensor([answer.probabilities[name] for name in names])
    _near(found, scores[0].softmax(-1), "categories score otherwise than alone")
    if winner.category != names[int(scores[0].argmax())]:
        raise _Wrong("the search finds another category than the scores")
    return _WAYS[predictor._scores.__name__]


@torch.inference_mode()
def _answer_as_forced(predictor: PosePredictor) -> None:
    model, processor = predictor._model, predictor._processor
    question = [{"role": "user", "content": f"{IMAGE_TOKEN}\n{JOINT_QUESTIONS[0]}"}]
    chat = processor.encode_chat(question, pictures()[1], add_generation_prompt=True)
    ids = torch.from_numpy(chat.input_ids)[None]
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    options |= {"use_cache": predictor._can_cache, "suppress_tokens": predictor._never_said}
    answer = model.answer(ids, inputs=chat.pictures, **options)
    whole = torch.cat([ids, answer.tokens], 1)
    forced = model(input_ids=whole, attention_mask=torch.ones_like(whole), **chat.pictures).states
    start = ids.shape[1] - 1
    _near(answer.states[0], forced[0, start : start + 4], "states of a generated answer are not teacher forcing's")


def parts_that_train(model: LlavaPoseForConditionalGeneration) -> dict[str, torch.nn.Module]:
    """Return the parts that a step of full training with the tower is to reach."""
    return {
        "head": model.pose_head,
        "input vector": model.pose_token_embedding,
        "output vector": model.pose_token_output,
        "language model": model.decoder,
        "tower": model.tower,
    }


def _gradients(predictor: PosePredictor) -> None:
    """One step of training reaches every part."""
    model, processor = predictor._model, predictor._processor
    turns = [
        {"role": "user", "content": f"{IMAGE_TOKEN}\n{JOINT_QUESTIONS[0]}"},
        {"role": "assistant", "content": JOINT_ANSWER.format(an_object="a car", pose=POSE_TOKEN)},
    ]
    chat = processor.encode_chat(turns, pictures()[0])
    freeze_for(model, language="full", tune_embeddings=True, tune_vision=True)
    ids, labels = (torch.from_numpy(np.asarray(part))[None] for part in (chat.input_ids, chat.labels))
    targets = torch.tensor([[0.7, 0.2, -0.1, 0.1, 0.5, 0.5]])
    model.train()(
        input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, pose_targets=targets, **chat.pictures
    ).loss.backward()
    model.eval()
    for name, part in parts_that_train(model).items():
        gradients = [p.grad for p in part.parameters() if p.grad is not None]
        if name == "input vector":  # nothing comes after the token in so short a chat
            continue
        if not any(bool(g.any()) for g in gradients):
            raise _Wrong(f"no gradient reaches the {name}")
        if not all(bool(g.isfinite().all()) for g in gradients):
            raise _Wrong(f"a gradient of the {name} is not finite")


__all__ = ["Outcome", "make_shared", "outcome", "parts_that_train"]
