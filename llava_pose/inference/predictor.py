"""A checkpoint as an object to ask: poses of many pictures in one forward pass, categories over a trie, chat.

This is the boundary that chat, demo, API and evaluation share: pictures and words in, :class:`PoseAnswer` or
:class:`ChatAnswer` out.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import GenerationConfig

from llava_pose.data.conversation import (
    DESCRIBED_ANSWER,
    DESCRIBED_QUESTIONS,
    IMAGE_TOKEN,
    JOINT_ANSWER,
    JOINT_QUESTIONS,
    POSE_ANSWER,
    POSE_QUESTIONS,
    POSE_TOKEN,
    interleave_poses,
    space_poses,
)
from llava_pose.data.images import assumed_viewport, square_picture
from llava_pose.data.records import Pose, pose_targets_of
from llava_pose.errors import InputError
from llava_pose.inference.answer_trie import AnswerTrie
from llava_pose.model.loading import load_model, load_processor, require_fit, require_tower, unwrap_model
from llava_pose.model.pose_head import ImageTokens, PoseHeadOutput
from llava_pose.model.processing import LlavaPoseProcessor


@dataclass(frozen=True)
class PoseAnswer:
    """The pose of one object, in pixels of the picture that was given.

    Attributes:
        confidence: the head's probability that the rotation is within its threshold (30 degrees by default).
        category: the category that was asked about or found.
        probabilities: over the candidates, where the category was found.
    """

    pose: Pose
    confidence: float
    category: str
    probabilities: dict[str, float] | None = None


@dataclass(frozen=True)
class ChatAnswer:
    """One answer of a chat.

    Attributes:
        text: with a `<pose6D>` for each of ``poses``.
        poses: in pixels of the picture, in the order of their tokens.
        confidences: of the poses.
        complete: False if the answer was cut off, at the limit of its tokens or of its time.
        took_too_long: whether it was time that cut it off.
    """

    text: str
    poses: list[Pose] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    complete: bool = True
    took_too_long: bool = False

    @property
    def readable(self) -> str:
        """The text with angles in degrees in the place of `<pose6D>`."""
        return interleave_poses(self.text, self.poses)


@dataclass(frozen=True)
class _Frame:
    """How a picture became the square that the model sees: square = picture * scale + (left, top).

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
        px, py = cast(tuple[float, float], (pose.px, pose.py))  # the model's own poses have a place
        return replace(pose, px=(px - self.left) / self.scale, py=(py - self.top) / self.scale)

    def to_square(self, pose: Pose) -> Pose:
        if pose.px is None or pose.py is None:
            return pose
        return replace(pose, px=pose.px * self.scale + self.left, py=pose.py * self.scale + self.top)


_NO_PICTURE = _Frame(scale=1.0, left=0, top=0, side=1, viewport=1.0)


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

    def __init__(self, model: nn.Module, processor: LlavaPoseProcessor):
        self._model = unwrap_model(model).eval()
        self._model.model.put_channels_last()
        self._processor = processor
        self._device = next(self._model.parameters()).device
        # of a checkpoint's generation settings only the tokens that end an answer: others fail, never end or fetch code
        self._model.generation_config = GenerationConfig(eos_token_id=sorted(self._stop_ids()) or None)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        base: str | None = None,
        device: str | None = None,
        dtype: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> PosePredictor:
        """Load a checkpoint folder (full or adapter).

        Args:
            base: the base of an adapter, if it has moved.
            device: by default a GPU if there is one.
            dtype: by default the checkpoint's own on a GPU, float32 on a CPU.

        Raises:
            InputError: the checkpoint is missing, incomplete, or not one of ours, or there is no such device.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _require_device(device)
        dtype = dtype or (torch.float32 if device == "cpu" else "auto")
        model = load_model(path, base=base, device=device, dtype=dtype, **kwargs)
        processor = load_processor(path)
        require_fit(model, processor, path)
        predictor = cls(model, processor)
        require_tower(model, processor, path)
        return predictor

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
        frames, pixels = self._see(images, viewports)
        if descriptions is None:
            chats = [self._prefix(POSE_QUESTIONS[0], POSE_ANSWER, object=name) for name in objects]
        else:
            chats = [self._prefix(DESCRIBED_QUESTIONS[0], DESCRIBED_ANSWER, description=text) for text in descriptions]
        length = max(map(len, chats))
        ids = torch.full((len(chats), length), self._processor.tokenizer.pad_token_id, device=self._device)
        attended = torch.zeros_like(ids)
        for row, chat in enumerate(chats):
            ids[row, : len(chat)] = torch.from_numpy(chat)
            attended[row, : len(chat)] = 1
        last = torch.tensor([len(chat) - 1 for chat in chats], device=self._device)

        def ask(pixels: Tensor) -> PoseHeadOutput:
            patches = self._model.model.extract_patches(pixels)
            embeddings = self._model.embed_inputs(ids, image_patches=patches)
            states = self._model.model.language_model(
                inputs_embeds=embeddings, attention_mask=attended, use_cache=False
            ).last_hidden_state
            seen = self._model.image_tokens(embeddings, ids, patches)
            return self._model.read_poses(states[torch.arange(len(chats), device=self._device), last], seen)

        output = ask(pixels)
        if flip is not None and any(flip):
            both = torch.tensor(list(flip), device=self._device)
            output = self._model.pose_head.with_mirror_images(output, ask(pixels.flip(-1)), both)
        return self._answers(output, frames, objects)

    @torch.inference_mode()
    def classify(
        self,
        images: Sequence[Image.Image],
        candidates: Mapping[str, str],
        *,
        viewports: Sequence[float] | None = None,
        flip: Collection[str] | None = None,
    ) -> list[PoseAnswer]:
        """Category and pose together: the candidates' answers are scored over one trie, in one forward pass.

        The pose is the one read at the end of the winning answer.

        Args:
            candidates: category -> what the answer calls it, with its article ("a car").
            flip: given, the mirror images are asked about too, and what a candidate scores is the mean of both; so is the
                pose, where the candidate is one of these. Only objects whose plane of symmetry is x = 0 have a pose in
                the mirror, while a left-handed guitar is a guitar.

        Raises:
            InputError: there is no candidate, or two are called the same.
        """
        if not candidates:
            raise InputError("there is no category to choose from")
        if len(set(candidates.values())) < len(candidates):
            twice = sorted(candidates.values(), key=list(candidates.values()).count)[-1]
            raise InputError(f"two categories to choose from are both called {twice!r}; leave one of them out")
        frames, pixels = self._see(images, viewports)
        trie = AnswerTrie(
            [self._prefix(JOINT_QUESTIONS[0], JOINT_ANSWER, an_object=name) for name in candidates.values()]
        )
        names, rows = list(candidates), torch.arange(len(images), device=self._device)
        scores, states, seen = self._score_trie(trie, self._model.model.extract_patches(pixels))
        of_mirror = None
        if flip is not None:
            of_mirror = self._score_trie(trie, self._model.model.extract_patches(pixels.flip(-1)))
            scores = (scores + of_mirror[0]) / 2
        probabilities = scores.softmax(-1)
        best = scores.argmax(-1)
        output = self._model.read_poses(states[rows, best], seen)
        if of_mirror is not None and flip is not None:
            both = torch.tensor([names[i] in flip for i in best.tolist()], device=self._device)
            _, states, seen = of_mirror
            mirrored = self._model.read_poses(states[rows, best], seen)
            output = self._model.pose_head.with_mirror_images(output, mirrored, both)
        answers = self._answers(output, frames, [names[i] for i in best.tolist()])
        return [
            replace(answer, probabilities=dict(zip(names, row, strict=True)))
            for answer, row in zip(answers, probabilities.tolist(), strict=True)
        ]

    def _score_trie(self, trie: AnswerTrie, patches: Tensor) -> tuple[Tensor, Tensor, ImageTokens | None]:
        """(batch, candidates) log probabilities, the states (batch, candidates, hidden) that predict the pose, and what the
        head sees of the pictures.
        """
        batch = patches.shape[0]
        ids = torch.as_tensor(trie.input_ids, device=self._device).expand(batch, -1)
        embeddings = self._model.embed_inputs(ids, image_patches=patches)
        mask = torch.zeros(trie.visible.shape, dtype=embeddings.dtype, device=self._device)
        mask.masked_fill_(~torch.as_tensor(trie.visible, device=self._device), torch.finfo(embeddings.dtype).min)
        states = self._model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask.expand(batch, 1, -1, -1),
            position_ids=torch.as_tensor(trie.position_ids, device=self._device).expand(batch, -1),
            use_cache=False,
        ).last_hidden_state
        log_probabilities = self._model.next_token_logits(states[:, trie.scored]).float().log_softmax(-1)
        parents, tokens = (
            torch.as_tensor(x, device=self._device) for x in trie.transitions(self._processor.pose_token_id)
        )
        steps = log_probabilities[:, parents, tokens]
        member = torch.as_tensor(trie.membership, dtype=steps.dtype, device=self._device)
        return steps @ member.T, states[:, trie.leaves], self._model.image_tokens(embeddings, ids, patches)

    @torch.inference_mode()
    def chat(
        self,
        image: Image.Image | None,
        messages: Sequence[Mapping[str, Any]],
        *,
        viewport: float | None = None,
        max_new_tokens: int = 128,
        max_seconds: float | None = None,
    ) -> ChatAnswer:
        """Answer the last question of a chat. Angles come from the pose head at the steps that emit `<pose6D>`.

        Args:
            image: shown with the first question; None for text alone.
            messages: {"role": "user" | "assistant", "content": str}; a `<pose6D>` in a question needs its pose, in picture
                pixels, in that message's "poses".
            max_seconds: after which an answer is cut off, once the question itself has been read.

        Raises:
            InputError: there is no question, poses and tokens of a question do not agree, or the chat has grown longer
                than the language model can take.
        """
        if not messages or messages[-1].get("role") != "user":
            raise InputError("the last message of a chat must be a question (role 'user')")
        frames, patches = None, None
        if image is not None:
            frames, pixels = self._see([image], None if viewport is None else [viewport])
            patches = self._model.model.extract_patches(pixels)
        turns = [{"role": message["role"], "content": message["content"]} for message in messages]
        if image is not None and not any(IMAGE_TOKEN in turn["content"] for turn in turns):
            first = next(index for index, turn in enumerate(turns) if turn["role"] == "user")
            turns[first]["content"] = f"{IMAGE_TOKEN}\n{turns[first]['content']}"
        ids, at_input_pose = self._encode_prompt(turns)
        self._require_room(ids.shape[1], max_new_tokens)
        input_poses = self._input_poses(messages, frames[0] if frames else None)
        if int(at_input_pose.sum()) != len(input_poses):
            raise InputError(f"{int(at_input_pose.sum())} {POSE_TOKEN} in the questions, but {len(input_poses)} poses")
        embeddings = self._model.embed_inputs(
            ids, image_patches=patches, input_poses=input_poses, input_pose_mask=at_input_pose
        )
        generated = self._model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            max_time=max_seconds,
            do_sample=False,
            use_cache=True,
            pad_token_id=self._processor.tokenizer.pad_token_id,
            suppress_tokens=[self._processor.image_token_id],  # an answer is text: the next turn would want a picture
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
        tokens = generated.sequences[0].tolist()
        states = [
            generated.hidden_states[step][-1][0, -1]
            for step, token in enumerate(tokens)
            if token == self._processor.pose_token_id
        ]
        stops = self._stop_ids()
        complete = bool(tokens) and tokens[-1] in stops
        ending: dict[str, Any] = {"complete": complete, "took_too_long": not complete and len(tokens) < max_new_tokens}
        hidden = set(self._processor.tokenizer.all_special_ids) | stops
        hidden.discard(self._processor.pose_token_id)
        text = space_poses(self._processor.tokenizer.decode([token for token in tokens if token not in hidden])).strip()
        if not states:
            return ChatAnswer(text, **ending)
        frame = frames[0] if frames else _NO_PICTURE
        rows = torch.zeros(len(states), dtype=torch.long, device=self._device)
        seen = self._model.image_tokens(embeddings, ids, patches)
        output = self._model.read_poses(torch.stack(states), seen, rows)
        answers = self._answers(output, [frame] * len(states), [""] * len(states))
        return ChatAnswer(text, [a.pose for a in answers], [a.confidence for a in answers], **ending)

    def _stop_ids(self) -> set[int]:
        configured = self._model.generation_config.eos_token_id
        configured = configured if isinstance(configured, list) else [configured]
        return {token for token in (self._processor.tokenizer.eos_token_id, *configured) if isinstance(token, int)}

    @property
    def _room(self) -> int | None:
        """Tokens that the language model can take."""
        return getattr(self._model.config.text_config, "max_position_embeddings", None)

    def _require_room(self, prompt: int, answer: int) -> None:
        if self._room is not None and prompt + answer > self._room:
            raise InputError(
                f"the chat has {prompt} tokens, which with {answer} for the answer are more than the model's {self._room}: "
                "start a new chat, or ask for shorter answers"
            )

    def _encode_prompt(self, turns: list[dict[str, str]]) -> tuple[Tensor, Tensor]:
        text = self._processor.render(turns, add_generation_prompt=True)
        encoding = self._processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.asarray(encoding["input_ids"], dtype=np.int64)
        answer_spans = self._processor.answer_spans(turns, text)
        in_answer = np.array(
            # <pose6D> holds the space before it, which may be the last character of the prompt
            [any(start < b and end > a for a, b in answer_spans) for start, end in encoding["offset_mapping"]],
            dtype=bool,
        )
        at_input_pose = (ids == self._processor.pose_token_id) & ~in_answer
        repeats = np.where(
            ids == self._processor.image_token_id,
            self._processor.count_image_tokens(*self._processor.image_size),
            1,
        )
        ids, at_input_pose = np.repeat(ids, repeats), np.repeat(at_input_pose, repeats)
        return (
            torch.from_numpy(ids)[None].to(self._device),
            torch.from_numpy(at_input_pose)[None].to(self._device),
        )

    def _input_poses(self, messages: Sequence[Mapping[str, Any]], frame: _Frame | None) -> Tensor:
        frame = frame or _NO_PICTURE
        rows = [
            pose_targets_of(frame.to_square(pose), width=frame.side, height=frame.side, viewport=frame.viewport)
            for message in messages
            if message["role"] == "user"
            for pose in message.get("poses", ())
        ]
        return torch.tensor(rows, dtype=torch.float32, device=self._device).reshape(-1, 6)

    def _see(self, images: Sequence[Image.Image], viewports: Sequence[float] | None) -> tuple[list[_Frame], Tensor]:
        """How each picture became a square, and the squares as the tower takes them."""
        frames, squares = [], []
        for index, image in enumerate(images):
            square, scale, left, top = square_picture(image)
            viewport = assumed_viewport(image) if viewports is None else float(viewports[index])
            frames.append(_Frame(scale, left, top, square.width, viewport * scale))
            squares.append(square)
        pixels = self._processor.image_processor(squares, return_tensors="pt")["pixel_values"]
        dtype = next(self._model.model.vision_tower.parameters()).dtype
        return frames, pixels.to(device=self._device, dtype=dtype)

    def _prefix(self, question: str, answer: str, **words: str) -> np.ndarray:
        """Token ids of question and answer up to the state that predicts `<pose6D>`, as training saw them."""
        chat = self._processor.encode_chat(
            [
                {"role": "user", "content": f"{IMAGE_TOKEN}\n{question.format(**words)}"},
                {"role": "assistant", "content": answer.format(pose=POSE_TOKEN, **words)},
            ]
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
        return [
            PoseAnswer(frame.to_picture(pose), float(confidence), name)
            for frame, pose, confidence, name in zip(frames, poses, output.confidence.tolist(), names, strict=True)
        ]
