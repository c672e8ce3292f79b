"""A checkpoint as an object to ask: poses of many pictures in one forward pass, categories over a trie, chat.

This is the boundary that chat, demo, API and evaluation share: pictures and words in, :class:`PoseAnswer` or
:class:`ChatAnswer` out.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import starmap
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from llava_pose.backbones.probe import look_again
from llava_pose.data.collator import joined_pictures
from llava_pose.data.conversation import (
    DESCRIBED_ANSWER,
    DESCRIBED_QUESTIONS,
    IGNORE_INDEX,
    IMAGE_TOKEN,
    JOINT_ANSWER,
    JOINT_QUESTIONS,
    POSE_ANSWER,
    POSE_QUESTIONS,
    POSE_TOKEN,
    pictures_meant,
    space_poses,
)
from llava_pose.data.images import assumed_viewport, square_picture
from llava_pose.data.records import Pose, pose_targets_of
from llava_pose.errors import InputError
from llava_pose.inference.answer_trie import AnswerTrie
from llava_pose.inference.answers import ChatAnswer, Mode, PoseAnswer
from llava_pose.inference.best_first import best_answers, finds_the_best
from llava_pose.inference.scoring import PROBED, Scores, answers_by_cache, best_scores, tree_scores
from llava_pose.model.calibration import Calibration
from llava_pose.model.checkpoint_files import blaming
from llava_pose.model.loading import load_model, require_fit, require_tower
from llava_pose.model.modeling import LlavaPoseForConditionalGeneration
from llava_pose.model.pose_head import ImageTokens, PoseHeadOutput
from llava_pose.model.processing import LlavaPoseProcessor, listed_pictures
from llava_pose.model.processors import load_processor, picture_to_try

_MOST_KEPT = 1 << 30  # numbers of a cache: two gigabytes in 16 bits

_MOST_LOGITS = 1 << 27  # numbers at a time: half a gigabyte, and as much again for their logarithms


@dataclass(frozen=True)
class _Frame:
    """The map from a picture to the square that the model sees: square = picture * scale + (left, top).

    Attributes:
        side: of the square, pixels.
        viewport: square pixels per unit focal length.
    """

    scale: float
    left: int
    top: int
    side: int
    viewport: float

    def to_picture(self, pose: Pose) -> Pose:
        if pose.px is None or pose.py is None:  # of a head whose numbers are none
            return pose
        return replace(pose, px=(pose.px - self.left) / self.scale, py=(pose.py - self.top) / self.scale)

    def to_square(self, pose: Pose) -> Pose:
        if pose.px is None or pose.py is None:
            return pose
        return replace(pose, px=pose.px * self.scale + self.left, py=pose.py * self.scale + self.top)


def _one_for_each(viewport: float | Sequence[float] | None, images: Sequence[Image.Image]) -> Sequence[float] | None:
    """Return the viewports of pictures.

    Raises:
        InputError: there are not as many as pictures.
    """
    if viewport is None:
        return None
    if not isinstance(viewport, Sequence):
        return [viewport] * len(images)
    if len(viewport) != len(images):
        raise InputError(
            f"there are {len(images)} pictures and {len(viewport)} viewports; give one for each, or one for all"
        )
    return viewport


_NO_PICTURE = _Frame(scale=1.0, left=0, top=0, side=1, viewport=1.0)


class _Watch(StoppingCriteria):
    """Tells what an answer says while it is written, and ends it at a pose that no word stands before: an answer has as many
    poses as it names objects.

    Args:
        start: tokens of the prompt.
        text_of: what tokens say.
        on_text: as :meth:`PosePredictor.chat` takes it.
    """

    def __init__(
        self, start: int, pose: int, text_of: Callable[[Sequence[int]], str], on_text: Callable[[str], None] | None
    ):
        self._start, self._pose, self._text_of, self._on_text = start, pose, text_of, on_text
        self.has_stopped = False

    def _repeats(self, tokens: Sequence[int]) -> bool:
        """Return whether the last token is a pose that follows another without a word."""
        poses = [index for index, token in enumerate(tokens) if token == self._pose]
        if len(poses) < 2 or poses[-1] != len(tokens) - 1:
            return False
        between = self._text_of(tokens[poses[-2] + 1 : -1])
        return not any(character.isalnum() for character in between)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        tokens = input_ids[0, self._start :].tolist()
        self.has_stopped = self._repeats(tokens)
        if self._on_text is not None and not self.has_stopped:
            self._on_text(self._text_of(tokens))
        return torch.full((len(input_ids),), self.has_stopped, device=input_ids.device)


def _require_device(device: str) -> None:
    try:
        torch.empty(1, device=device).item()  # the device "meta" holds no numbers
    except (RuntimeError, AssertionError) as error:  # the second from a torch that was built without it
        reason = str(error).splitlines()[0][:80]
        raise InputError(
            f"--device {device}: cannot be used here ({reason}); give cpu, or leave it out for a GPU if there is one"
        ) from error


class PosePredictor:
    """A LLaVA-pose checkpoint ready to answer.

    Distances need the viewport (pixels per unit focal length) of the camera; see :func:`assumed_viewport`.
    """

    def __init__(
        self,
        model: LlavaPoseForConditionalGeneration,
        processor: LlavaPoseProcessor,
        calibration: Calibration | None = None,
    ):
        self.calibration = calibration
        self._model = model.eval()
        self._model.put_channels_last()
        self._processor = processor
        self._device = next(self._model.parameters()).device
        # of a checkpoint's generation settings only the tokens that end an answer: others fail, never end or fetch code
        self._model.vlm.generation_config = GenerationConfig(eos_token_id=sorted(self._stop_ids()) or None)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        base: str | None = None,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        calibrated: bool = True,
        **kwargs: Any,
    ) -> PosePredictor:
        """Load a checkpoint folder (full or adapter).

        Args:
            base: the base of an adapter, if it has moved.
            device: by default a GPU if there is one.
            dtype: by default the checkpoint's own on a GPU, float32 on a CPU.
            calibrated: whether answers are to be as ``llava-pose calibrate`` has found, where it has.

        Raises:
            InputError: the checkpoint is missing, incomplete, or not one of ours, or there is no such device.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _require_device(device)
        dtype = dtype or (torch.float32 if device == "cpu" else "auto")
        model = load_model(path, base=base, device=device, dtype=dtype, **kwargs)
        processor = load_processor(path)
        require_fit(model, processor, path)
        calibration = Calibration.load(path) if calibrated else None
        if calibration is not None and calibration.pictures is not None:
            channels = len(calibration.pictures.mean)
            if channels != model.pose_config.pooled_size or not model.pose_head.looks:
                raise InputError(
                    f"{path}: the neighbours of calibration.json have {channels} channels, which are not this model's; run "
                    "llava-pose calibrate again"
                )
        predictor = cls(model, processor, calibration)
        require_tower(model, processor, path)
        look_again(model, processor, path)
        with blaming(f"{path}: it cannot be used"):
            predictor.predict([picture_to_try()], ["object"])
        return predictor

    @property
    def looks(self) -> bool:
        """Whether the pose head looks at the picture by itself."""
        return self._model.pose_head.looks

    @property
    def confidence_threshold(self) -> float:
        """The angle in radians that an answer is to be within, for the confidence to be right about it."""
        return self._model.pose_config.confidence_threshold

    @property
    def categories(self) -> list[str]:
        """The categories that the checkpoint was taught, as far as it says so."""
        return self._model.pose_config.categories

    @property
    def kinds(self) -> list[str]:
        """The kinds of questions that the checkpoint was taught, as far as it says so."""
        return self._model.pose_config.kinds

    @torch.inference_mode()
    def predict(
        self,
        images: Sequence[Image.Image],
        objects: Sequence[str],
        *,
        descriptions: Sequence[str] | None = None,
        viewports: Sequence[float] | None = None,
        flip: Sequence[bool] | None = None,
    ) -> list[PoseAnswer]:
        """Poses of named objects, one a picture, in one forward pass without generation.

        Args:
            images: any sizes.
            objects: what to ask about in each, display names.
            descriptions: of the objects; they are then asked for by these, as ``instruct --kinds described`` does, and not
                by their names.
            viewports: pixels per unit focal length of each picture.
            flip: whose mirror images are asked about too; the answer is then the mean of both. Only objects whose plane of
                symmetry is x = 0 have an answer in the mirror.

        Raises:
            InputError: a question is longer than the language model can take.
        """
        frames, squares = self._squares(images, viewports)
        if descriptions is None:
            asked = [(POSE_QUESTIONS[0], POSE_ANSWER, {"object": name}) for name in objects]
        else:
            asked = [(DESCRIBED_QUESTIONS[0], DESCRIBED_ANSWER, {"description": text}) for text in descriptions]
        output = self._ask(squares, asked)
        rows = [row for row, wanted in enumerate(flip or ()) if wanted]
        if rows:
            mirrored = self._ask([ImageOps.mirror(squares[row]) for row in rows], [asked[row] for row in rows])
            output = self._with_mirrored(output, rows, mirrored)
        return self._answers(output, frames, objects)

    def _ask(self, squares: Sequence[Image.Image], asked: Sequence[tuple[str, str, dict[str, str]]]) -> PoseHeadOutput:
        """Return the poses of answers to questions, one a picture, read where `<pose6D>` is predicted."""
        prefixes = [
            self._prefix(question, answer, square, **words)
            for square, (question, answer, words) in zip(squares, asked, strict=True)
        ]
        inputs = self._pictures(squares)
        length = max(map(len, prefixes))
        shape = (len(prefixes), length)
        ids = torch.full(shape, self._processor.tokenizer.pad_token_id, device=self._device)
        attended, last = torch.zeros_like(ids), torch.zeros(shape, dtype=torch.bool, device=self._device)
        for row, prefix in enumerate(prefixes):
            ids[row, : len(prefix)] = torch.from_numpy(prefix)
            attended[row, : len(prefix)] = 1
            last[row, len(prefix) - 1] = True
        return self._model.read_poses(*self._model.predicting(ids, attended, last, **inputs))

    def _with_mirrored(self, output: PoseHeadOutput, rows: list[int], mirrored: PoseHeadOutput) -> PoseHeadOutput:
        """Return answers with those of some rows as the means of the picture's and its mirror image's."""
        both = torch.ones(len(rows), dtype=torch.bool, device=self._device)
        mean = self._model.pose_head.with_mirror_images(output.of(rows), mirrored, both)
        return output.replaced(rows, mean)

    @torch.inference_mode()
    def classify(
        self,
        images: Sequence[Image.Image],
        candidates: Mapping[str, str],
        *,
        viewports: Sequence[float] | None = None,
        flip: Collection[str] | None = None,
        probabilities: bool = True,
    ) -> list[PoseAnswer]:
        """Category and pose together: the candidates' answers are scored by the tokens up to and with `<pose6D>`.

        The pose is the one read at the end of the winning answer.

        Args:
            candidates: category -> what the answer calls it, with its article ("a car").
            flip: given, the mirror images are asked about too, and what a candidate scores is the mean of both; so is the
                pose, where the candidate is one of these. Only objects whose plane of symmetry is x = 0 have a pose in
                the mirror, while a left-handed guitar is a guitar.
            probabilities: whether they are wanted, of all candidates; without them the same winner is found by a search,
                which takes less time the more candidates there are.

        Raises:
            InputError: there is no candidate, or two are called the same.
        """
        if not candidates:
            raise InputError("there is no category to choose from")
        if len(set(candidates.values())) < len(candidates):
            twice = sorted(candidates.values(), key=list(candidates.values()).count)[-1]
            raise InputError(f"two categories to choose from are both called {twice!r}; leave one of them out")
        frames, squares = self._squares(images, viewports)
        views = [squares, *([] if flip is None else [[ImageOps.mirror(square) for square in squares]])]
        names, called = list(candidates), list(candidates.values())
        rows = None
        if probabilities or not self._can_search:
            of_views = [self._scored(view, called) for view in views]
            scores = sum(view[0] for view in of_views) / len(views)
            rows = cast(Tensor, scores).softmax(-1).tolist()
            best = cast(Tensor, scores).argmax(-1)
            index = torch.arange(len(images), device=self._device)
            found = [(states[index, best], seen) for _, states, seen in of_views]
        else:
            best, found = self._searched(views, called)
        output = self._model.read_poses(*found[0])
        both = [row for row, place in enumerate(best.tolist()) if names[place] in (flip or ())]
        if both:
            states, seen = found[1]
            chosen = torch.tensor(both, device=self._device)
            mirrored = self._model.read_poses(states[chosen], None if seen is None else seen.of(chosen))
            output = self._with_mirrored(output, both, mirrored)
        answered = self._answers(output, frames, [names[place] for place in best.tolist()])
        if rows is None or not probabilities:
            return answered
        return [
            replace(answer, probabilities=dict(zip(names, row, strict=True)))
            for answer, row in zip(answered, rows, strict=True)
        ]

    def _searched(
        self, views: Sequence[Sequence[Image.Image]], candidates: Sequence[str]
    ) -> tuple[Tensor, list[tuple[Tensor, ImageTokens | None]]]:
        """Return (objects,) the likeliest candidates, and for each view the states that predict the pose, and what the head
        sees of the pictures.
        """
        trie, text = AnswerTrie(self._joint_answers(views[0][0], candidates)), self._model.config.get_text_config()
        # keys and values of a picture, at most
        kept = 2 * text.num_hidden_layers * text.hidden_size * len(trie.input_ids)
        rows = max(1, _MOST_KEPT // (kept * len(views)))
        parts = []
        for start in range(0, len(views[0]), rows):
            batch = [view[start : start + rows] for view in views]
            inputs = self._pictures([square for view in batch for square in view])
            token = self._processor.pose_token_id
            parts.append(best_answers(self._model, trie, token, inputs, len(batch[0]), len(views)))
        found: list[tuple[Tensor, ImageTokens | None]] = []
        for view in range(len(views)):
            seen = [part.seen[view] for part in parts]
            joined = None if seen[0] is None else ImageTokens.joined(cast(list[ImageTokens], seen))
            found.append((torch.cat([part.states[view] for part in parts]), joined))
        return torch.cat([part.best for part in parts]), found

    def _scored(self, squares: Sequence[Image.Image], candidates: Sequence[str]) -> Scores:
        """Return (batch, candidates) log probabilities, the states (batch, candidates, hidden) that predict the pose, and
        what the head sees of the pictures. Pictures with as many tokens are scored together.
        """
        if self._scores is tree_scores and self._processor.expanded_image is not None:
            answers = self._joint_answers(squares[0], candidates)
            trie = AnswerTrie(answers)
            rows = max(1, _MOST_LOGITS // (len(trie.scored) * self._model.config.get_text_config().vocab_size))
            batches = [squares[start : start + rows] for start in range(0, len(squares), rows)]
            parts = [self._scores_of(trie, answers, batch) for batch in batches]
        else:
            parts = []
            for square in squares:
                answers = self._joint_answers(square, candidates)
                parts.append(self._scores_of(AnswerTrie(answers), answers, [square]))
        seen = None if parts[0][2] is None else ImageTokens.joined([cast(ImageTokens, part[2]) for part in parts])
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), seen

    def _scores_of(self, trie: AnswerTrie, answers: list[np.ndarray], squares: Sequence[Image.Image]) -> Scores:
        inputs = self._pictures(squares)
        return self._scores(self._model, trie, answers, self._processor.pose_token_id, inputs, len(squares))

    def _joint_answers(self, square: Image.Image, candidates: Sequence[str]) -> list[np.ndarray]:
        return [self._prefix(JOINT_QUESTIONS[0], JOINT_ANSWER, square, an_object=name) for name in candidates]

    @cached_property
    def _scores(self) -> Any:
        """The way in which this backbone scores answers."""
        return best_scores(self._model, self._processor, self._probed_answers())

    @cached_property
    def _can_search(self) -> bool:
        """Say whether the likeliest answer can be searched for: pictures have as many tokens, and a cache goes with a tree."""
        if self._scores is not tree_scores or self._processor.expanded_image is None:
            return False
        answers, token = self._probed_answers(), self._processor.pose_token_id
        trie, inputs = AnswerTrie(answers), self._pictures([PROBED])
        scores = tree_scores(self._model, trie, answers, token, inputs, 1)
        return finds_the_best(self._model, trie, token, inputs, scores)

    @cached_property
    def _can_cache(self) -> bool:
        """Whether an answer is written with kept keys and values, found out at the first one."""
        return answers_by_cache(self._model, self._processor, f"{IMAGE_TOKEN}\n{JOINT_QUESTIONS[0]}", self._never_said)

    def _probed_answers(self) -> list[np.ndarray]:
        return self._joint_answers(PROBED, ["a car", "a pair of scissors", "an armchair"])

    @torch.inference_mode()
    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Return (n, channels) means of the tower's patches, one row a picture: what answers of like pictures share."""
        _, squares = self._squares(images, None)
        return self._model.see(self._pictures(squares)).pooled.float().cpu().numpy()

    @torch.inference_mode()
    def chat(
        self,
        image: Image.Image | Sequence[Image.Image] | None,
        messages: Sequence[Mapping[str, Any]],
        *,
        viewport: float | Sequence[float] | None = None,
        max_new_tokens: int = 128,
        max_seconds: float | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> ChatAnswer:
        """Answer the last question of a chat. Angles come from the pose head at the steps that emit `<pose6D>`.

        Args:
            image: one or several, shown with the first question, or each where an `<image>` stands in the questions; None for
                text alone.
            messages: {"role": "user" | "assistant", "content": str}; a `<pose6D>` in a question needs its pose, in picture
                pixels, in that message's "poses", and where that is not a pose in the first picture, all their pictures'
                places in the list in its "pictures".
            viewport: pixels per unit focal length, of all pictures or one for each.
            max_seconds: after which an answer is cut off, once the question itself has been read.
            on_text: is called with the text so far at each of its tokens, for whoever shows it as it comes.

        Raises:
            InputError: there is no question, poses and tokens of a question do not agree, nor pictures and `<image>`, or the
                chat has grown longer than the language model can take.
        """
        if not messages or messages[-1].get("role") != "user":
            raise InputError("the last message of a chat must be a question (role 'user')")
        images = listed_pictures(image)
        frames, squares = self._squares(images, _one_for_each(viewport, images))
        turns = [{"role": message["role"], "content": message["content"]} for message in messages]
        if not any(IMAGE_TOKEN in turn["content"] for turn in turns):
            first = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
            turns[first]["content"] = f"{IMAGE_TOKEN}\n" * len(images) + turns[first]["content"]
        chat = self._processor.encode_chat(turns, squares, add_generation_prompt=True)
        ids = torch.from_numpy(chat.input_ids)[None].to(self._device)
        self._require_room(ids.shape[1], max_new_tokens)
        at_input_pose = (chat.input_ids == self._processor.pose_token_id) & (chat.labels == IGNORE_INDEX)
        input_poses = self._input_poses(messages, frames or [_NO_PICTURE])
        if int(at_input_pose.sum()) != len(input_poses):
            raise InputError(f"{int(at_input_pose.sum())} {POSE_TOKEN} in the questions, but {len(input_poses)} poses")
        watch = _Watch(ids.shape[1], self._processor.pose_token_id, self._text_of, on_text)
        generated = self._model.answer(
            ids,
            input_poses=input_poses,
            input_pose_mask=torch.from_numpy(at_input_pose)[None].to(self._device),
            inputs={name: value.to(self._device) for name, value in chat.pictures.items()},
            max_new_tokens=max_new_tokens,
            max_time=max_seconds,
            stopping_criteria=StoppingCriteriaList([watch]),
            do_sample=False,
            use_cache=self._can_cache,
            pad_token_id=self._processor.tokenizer.pad_token_id,
            suppress_tokens=self._never_said,
        )
        tokens = generated.tokens[0].tolist()
        if watch.has_stopped:
            tokens = tokens[:-1]
        at_pose = [step for step, token in enumerate(tokens) if token == self._processor.pose_token_id]
        stops = self._stop_ids()
        complete = watch.has_stopped or (bool(tokens) and tokens[-1] in stops)
        ending: dict[str, Any] = {"complete": complete, "took_too_long": not complete and len(tokens) < max_new_tokens}
        text = self._text_of(tokens)
        if not at_pose:
            return ChatAnswer(text, **ending)
        before = [
            self._text_of(tokens[start:step])
            for start, step in zip([0, *(step + 1 for step in at_pose)], at_pose, strict=False)
        ]
        meant = pictures_meant(turns[-1]["content"], before, len(images))
        rows = torch.zeros(len(at_pose), dtype=torch.long, device=self._device)
        output = self._model.read_poses(generated.states[0, at_pose], generated.image_tokens, rows)
        of_poses = [_NO_PICTURE if picture is None else frames[picture] for picture in meant]
        answers = self._answers(output, of_poses, [""] * len(at_pose))
        poses, confidences = [a.pose for a in answers], [a.confidence for a in answers]
        if len(images) > 1:  # the place in a picture means nothing without the picture
            poses = [Pose(*pose.angles) if m is None else pose for pose, m in zip(poses, meant, strict=True)]
        return ChatAnswer(text, poses, confidences, [a.prediction_set for a in answers], pictures=meant, **ending)

    def _text_of(self, tokens: Sequence[int]) -> str:
        """Return what an answer's tokens say, with `<pose6D>` for each pose."""
        said = self._processor.tokenizer.decode([token for token in tokens if token not in self._hidden_ids])
        return space_poses(cast(str, said)).strip()

    @cached_property
    def _hidden_ids(self) -> set[int]:
        """The special tokens that an answer does not show."""
        return (set(self._processor.tokenizer.all_special_ids) | self._stop_ids()) - {self._processor.pose_token_id}

    def _stop_ids(self) -> set[int]:
        configured = getattr(self._model.vlm.generation_config, "eos_token_id", None)
        configured = configured if isinstance(configured, list) else [configured]
        return {token for token in (self._processor.tokenizer.eos_token_id, *configured) if isinstance(token, int)}

    @property
    def _room(self) -> int | None:
        """Tokens that the language model can take."""
        return self._model.positions

    @property
    def _never_said(self) -> list[int]:
        """Tokens that no answer has, which is text: the next turn would want a picture for each."""
        return sorted({self._model.pose_config.image_token_id, self._image_token_id})

    @property
    def _image_token_id(self) -> int:
        """The id of the token that stands for a picture in a text, which need not be that of an image token."""
        return cast(int, self._processor.tokenizer.convert_tokens_to_ids(self._processor.image_token))

    def _require_room(self, prompt: int, answer: int) -> None:
        if self._room is not None and prompt + answer > self._room:
            raise InputError(
                f"the chat has {prompt} tokens, which with {answer} for the answer are more than the model's {self._room}: "
                "start a new chat, or ask for shorter answers"
            )

    def _input_poses(self, messages: Sequence[Mapping[str, Any]], frames: Sequence[_Frame]) -> Tensor:
        rows = []
        for message in messages:
            poses = message.get("poses", ()) if message["role"] == "user" else ()
            pictures = message.get("pictures") or [0] * len(poses)
            if len(pictures) != len(poses) or not all(picture in range(len(frames)) for picture in pictures):
                raise InputError(
                    f"'pictures' of a question must be the place of a picture, from 0 to {len(frames) - 1}, for each of its "
                    f"{len(poses)} poses, not {reprlib.repr(pictures)}"
                )
            for frame, pose in zip((frames[picture] for picture in pictures), poses, strict=True):
                size = {"width": frame.side, "height": frame.side, "viewport": frame.viewport}
                rows.append(pose_targets_of(frame.to_square(pose), **size))
        return torch.tensor(rows, dtype=torch.float32, device=self._device).reshape(-1, 6)

    def _squares(
        self, images: Sequence[Image.Image], viewports: Sequence[float] | None
    ) -> tuple[list[_Frame], list[Image.Image]]:
        """Return how each picture became a square, and the squares."""
        frames, squares = [], []
        for index, image in enumerate(images):
            square, scale, left, top = square_picture(image)
            viewport = assumed_viewport(image) if viewports is None else float(viewports[index])
            frames.append(_Frame(scale, left, top, square.width, viewport * scale))
            squares.append(square)
        return frames, squares

    def _pictures(self, squares: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Return what the backbone is given of pictures."""
        inputs = joined_pictures([self._processor.picture_inputs(square) for square in squares])
        return {name: value.to(self._device) for name, value in inputs.items()}

    def _prefix(self, question: str, answer: str, square: Image.Image, **words: str) -> np.ndarray:
        """Token ids of question and answer up to the state that predicts `<pose6D>`, as training saw them."""
        chat = self._processor.encode_chat(
            [
                {"role": "user", "content": f"{IMAGE_TOKEN}\n{question.format(**words)}"},
                {"role": "assistant", "content": answer.format(pose=POSE_TOKEN, **words)},
            ],
            square if self._processor.expanded_image is None else None,
        )
        length = int(np.flatnonzero(chat.labels == self._processor.pose_token_id)[0])
        if self._room is not None and length > self._room:
            raise InputError(
                f"a question and its answer have {length} tokens, more than the model's {self._room}: ask without "
                "descriptions, or take a base with room for more"
            )
        return chat.input_ids[:length]

    def _answers(self, output: PoseHeadOutput, frames: Sequence[_Frame], names: Sequence[str]) -> list[PoseAnswer]:
        side = torch.tensor([frame.side for frame in frames], dtype=torch.float64)
        viewport = torch.tensor([frame.viewport for frame in frames], dtype=torch.float64)
        poses = output.to_poses(width=side, height=side, viewport=viewport)
        angles, shares = self._model.pose_head.modes(output)
        confidences = output.confidence.tolist()
        sizes: list[int] | None = None
        if self.calibration is not None:
            strangeness, known = None, self.calibration.pictures
            if known is not None and output.features is not None:
                strangeness = known.strangeness(output.features.float().cpu().numpy())
            logits = output.confidence_logit.double().cpu().numpy()
            confidences = self.calibration.confidences(logits, strangeness).tolist()
            sizes = self.calibration.set_sizes(shares).tolist()
        modes = [list(starmap(Mode, row)) for row in np.concatenate([angles, shares[..., None]], -1).tolist()]
        return [
            PoseAnswer(
                frame.to_picture(pose),
                confidences[row],
                names[row],
                viewport=frame.viewport / frame.scale,
                modes=modes[row],
                prediction_set=None if sizes is None else [mode[:3] for mode in modes[row][: sizes[row]]],
            )
            for row, (frame, pose) in enumerate(zip(frames, poses, strict=True))
        ]
