"""Pose parts on a backbone: the state that predicts `<pose6D>` is the state a pose is read from.

The backbone is any image-text-to-text model of transformers and stays as it is, by class, modules and names of its weights.
Two forward hooks tie the pose parts to it: one on its token embedding, which adds the trained vector of `<pose6D>` and what
the encoder says of poses given as input, and one on its output layer, which adds to the logit of `<pose6D>` and keeps the
states that the layer is given. What the model makes of logits afterwards (a cap, a scale) is its own business.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from llava_pose.data.conversation import IGNORE_INDEX
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.losses import POSE_TERMS, pose_loss, text_loss
from llava_pose.model.outputs import GeneratedAnswer, LlavaPoseOutput
from llava_pose.model.pictures import Pictures, accepted_names, connect_patches, see_pictures, token_types
from llava_pose.model.pose_head import (
    ImageTokens,
    PoseEncoder,
    PoseHead,
    PoseHeadOutput,
    PoseTokenEmbedding,
    PoseTokenOutput,
    ZeroStartLinear,
)

POSE_WEIGHTS = "pose_head.safetensors"

POSE_PARTS = ("pose_head", "pose_encoder", "pose_token_embedding", "pose_token_output")


@dataclass(frozen=True)
class _Given:
    """The inputs that the embedding is handed for one forward pass; see :meth:`LlavaPoseForConditionalGeneration._running`."""

    poses: Tensor | None
    mask: Tensor | None
    trains: bool
    blank: Tensor | None


class LlavaPoseForConditionalGeneration(nn.Module):
    """A backbone that answers with text and poses.

    With ``labels`` and ``pose_targets``, :meth:`forward` gives the training loss; :meth:`answer` generates, and
    :meth:`read_poses` turns states into poses. One pass at a time: what a pass is given, and the states that it leaves, are
    kept in the model while it runs.
    """

    def __init__(self, backbone: PreTrainedModel, config: LlavaPoseConfig):
        """
        Args:
            backbone: with its weights; LoRA may be wrapped round it afterwards (``llava_pose.train.trainable.add_lora``).
        """
        super().__init__()
        self.pose_config = config
        self.backbone: nn.Module = backbone
        parts = pose_parts(config)
        self.pose_head = cast(PoseHead, parts["pose_head"])
        self.pose_encoder = cast(PoseEncoder, parts["pose_encoder"])
        self.pose_token_embedding = cast(PoseTokenEmbedding, parts["pose_token_embedding"])
        self.pose_token_output = cast(PoseTokenOutput, parts["pose_token_output"])
        self._given: _Given | None = None
        self._states: list[Tensor] | None = None
        backbone.get_input_embeddings().register_forward_hook(self._after_embedding)
        backbone.get_output_embeddings().register_forward_hook(self._after_output)

    # The backbone and its parts

    @property
    def vlm(self) -> PreTrainedModel:
        """The backbone itself, whether or not an adapter is wrapped round it."""
        inner: Any = self.backbone
        return inner.get_base_model() if hasattr(inner, "get_base_model") else inner

    @property
    def config(self) -> PreTrainedConfig:
        """The backbone's own configuration; ours is ``pose_config``."""
        return self.vlm.config

    @property
    def tower(self) -> nn.Module:
        """The tower, which sees pictures."""
        return self.vlm.get_encoder(modality="image")

    @property
    def decoder(self) -> nn.Module:
        """The language model's blocks."""
        return self.vlm.get_decoder()

    @property
    def connector(self) -> nn.Module | None:
        """The module that makes image tokens of patches, where the backbone has one."""
        name = self.pose_config.connector
        return None if name is None else cast(nn.Module, self.vlm.base_model.get_submodule(name))

    @property
    def positions(self) -> int | None:
        """Tokens that the language model can take, if it has so many and no more."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def train(self, mode: bool = True) -> LlavaPoseForConditionalGeneration:
        """Set the mode, but leave a frozen tower in evaluation: batch norms and dropout would change what it sees."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.tower.parameters()):
            self.tower.eval()
        return self

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Compute the activations of the backbone's blocks again in the backward pass, in place of keeping them."""
        self.vlm.activation_checkpointing_enable(*args, **kwargs)

    def put_channels_last(self) -> None:
        """Lay the tower's convolutions out with the channels last, which makes them up to twice as fast.

        Not under DeepSpeed, which takes weights for rows of bytes. Layers of other kinds are not touched.
        """
        for parameter in self.tower.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def draw_weights(self) -> None:
        """Give the pose parts fresh weights: as large as the backbone's own at first, zero where nothing is to change."""
        std = getattr(self.config.get_text_config(), "initializer_range", None) or 0.02
        for name in POSE_PARTS:
            for module in getattr(self, name).modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=0.0 if isinstance(module, ZeroStartLinear) else std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def cast_pose_parts(self, dtype: torch.dtype) -> None:
        """Give the pose parts' weights that type."""
        for name in POSE_PARTS:
            getattr(self, name).to(dtype)

    def merged(self) -> LlavaPoseForConditionalGeneration:
        """Put an adapter's weights into the backbone's, in place, and return the model without the adapter."""
        if hasattr(self.backbone, "merge_and_unload"):
            self.backbone = cast(Any, self.backbone).merge_and_unload(safe_merge=True)
        return self

    # The two hooks

    def _after_embedding(self, module: nn.Module, args: tuple[Any, ...], embeddings: Tensor) -> Tensor:
        ids = args[0]
        embeddings = embeddings + self.pose_token_embedding(ids == self.pose_config.pose_token_id).to(embeddings.dtype)
        given = self._given
        if given is None:
            return embeddings
        if given.mask is not None and given.mask.shape == ids.shape:  # not a later step of an answer
            encoded = self.pose_encoder(given.poses).to(embeddings.dtype)
            embeddings = embeddings + torch.zeros_like(embeddings).masked_scatter(given.mask[..., None], encoded)
        elif given.trains:
            embeddings = embeddings + 0.0 * self.pose_encoder(embeddings.new_zeros(1, 6)).sum().to(embeddings.dtype)
        if given.blank is not None:
            embeddings = embeddings + 0.0 * given.blank.to(embeddings.dtype)
        return embeddings

    def _after_output(self, module: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        states = args[0]
        if self._states is not None:
            self._states.append(states)
        logits[..., self.pose_config.pose_token_id] += self.pose_token_output(states).to(logits.dtype)
        return logits

    @contextmanager
    def _running(
        self, poses: Tensor | None, mask: Tensor | None, *, trains: bool = False, blank: Tensor | None = None
    ) -> Iterator[list[Tensor]]:
        """Hand given poses to the embedding and collect the states that the output layer is given.

        Args:
            trains: the encoder runs, at no effect, where there is no pose for it.
            blank: a number that pictures without a place in the text have made, which has no effect either. Both go into the
                embeddings, where poses and pictures go: processes that train together must run the same modules in the same
                order, forward and backward, or they wait for each other, or mix up their gradients.
        """
        found, count = 0 if mask is None else int(mask.sum()), 0 if poses is None else poses.shape[0]
        if found != count:
            raise ValueError(f"{found} input pose tokens, but {count} poses")
        states: list[Tensor] = []
        self._given = _Given(poses, mask if count else None, trains, blank)
        self._states = states
        try:
            yield states
        finally:
            self._given = self._states = None

    # Pictures

    def see(self, inputs: Mapping[str, Any]) -> Pictures:
        """Return image tokens of pictures.

        Args:
            inputs: what the backbone's image processor gives, or ``image_patches``: (pictures, …, channels) as the
                connector is given them, from a cache.
        """
        patches = inputs.get("image_patches")
        if patches is None:
            return see_pictures(self.vlm, self.connector, inputs)
        if self.connector is None:
            raise ValueError("this backbone has no connector that patches could be handed to")
        return connect_patches(self.connector, patches, listed=self.pose_config.listed_tokens)

    def see_at_rest(self, inputs: Mapping[str, Any]) -> Pictures:
        """Do :meth:`see` in evaluation mode whatever the mode is: blank pictures must not move a tower's statistics."""
        if not self.tower.training:
            return self.see(inputs)
        self.tower.eval()
        try:
            return self.see(inputs)
        finally:
            self.tower.train()

    def patches(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return (pictures, …, channels) as the connector is given them, with a tower at rest.

        Raises:
            ValueError: the backbone has no connector.
        """
        patches = self.see_at_rest(inputs).patches
        if patches is None:
            raise ValueError("this backbone has no connector that patches could be handed to")
        return patches

    def image_tokens(self, input_ids: Tensor, pictures: Pictures | None) -> ImageTokens | None:
        """Return what :meth:`read_poses` sees of the pictures of (batch, length) ids; None where the head does not look."""
        if not self.pose_head.looks:
            return None
        at_image = input_ids == self.pose_config.image_token_id
        if pictures is None:
            weight = self.pose_token_embedding.change
            empty = weight.new_zeros(0, self.pose_config.pooled_size)
            return ImageTokens.of_pictures(at_image, weight.new_zeros(0, weight.shape[1]), empty, [])
        return ImageTokens.of_pictures(at_image, pictures.tokens, pictures.pooled, pictures.counts)

    def inputs_of_text(
        self, input_ids: Tensor, pictures: Pictures | None, inputs: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return what the backbone's forward or ``generate`` takes beside ids: image tokens, and what says where they are.

        Raises:
            ValueError: image tokens in the text and pictures do not match.
        """
        at_image = input_ids == self.pose_config.image_token_id
        count = int(at_image.sum())
        if count and pictures is not None and count != len(pictures.tokens):
            raise ValueError(
                f"{count} image tokens in the text, but {len(pictures.counts)} images of {len(pictures.tokens)} tokens "
                "together: the processor's settings do not fit the model's"
            )
        taken = accepted_names(self.vlm)
        # grids and sizes of pictures, by which some place their tokens
        text = {
            name: value
            for name, value in (inputs or {}).items()
            if name in taken and count and not name.startswith("pixel_values")
        }
        if pictures is not None and count:
            text["mm_encoder_outputs"] = {"image": pictures.output}
        return text | token_types(taken, at_image)

    # Poses

    def read_poses(self, states: Tensor, seen: ImageTokens | None = None, rows: Tensor | None = None) -> PoseHeadOutput:
        """Return poses read from the (n, hidden size) states that predict `<pose6D>`.

        Args:
            seen: :meth:`image_tokens` of the batch.
            rows: (n,) the row of the batch that each state is of; None: state i is of row i.

        Raises:
            ValueError: the head looks at the picture, and ``seen`` is None.
        """
        return self.pose_head(states, seen if seen is None or rows is None else seen.of(rows))

    @torch.inference_mode()
    def predicting(
        self, input_ids: Tensor, attention_mask: Tensor, at: Tensor, **inputs: Any
    ) -> tuple[Tensor, ImageTokens | None]:
        """Return the (n, hidden size) states at the True of (batch, length) booleans, and what the head sees of the pictures.

        No logits are computed where the backbone's base gives the states themselves.

        Args:
            inputs: of :meth:`see`.
        """
        if not self.pose_config.base_states:
            output = self(
                input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=at, use_cache=False, **inputs
            )
            return output.states, output.image_tokens
        pictures = self.see(inputs) if inputs else None
        text = self.inputs_of_text(input_ids, pictures, inputs)
        output = self.vlm.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **text)
        return output.last_hidden_state[at], self.image_tokens(input_ids, pictures)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        pose_targets: Tensor | None = None,
        input_poses: Tensor | None = None,
        input_pose_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_poses_in_batch: Tensor | int | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **inputs: Any,
    ) -> LlavaPoseOutput:
        """Return the loss with labels, and logits and states without.

        Args:
            input_ids: (batch, length).
            labels: (batch, length), -100 where no token is supervised.
            pose_targets: (n, 6) as ``pose_head.pose_targets_of`` gives them, one for each supervised `<pose6D>` in
                row-major order.
            input_poses: (m, 6) poses given as input, in the order of the True of
            input_pose_mask: (batch, length) booleans, at `<pose6D>` tokens.
            num_items_in_batch, num_poses_in_batch: supervised tokens and poses of the whole optimiser step, by which the
                sums are divided, so that accumulating gradients changes nothing. By default those of this batch.
            inputs: of :meth:`see`. With labels, pictures without an image token are blanks, which run tower and connector
                at no effect: processes that train together must all run the same modules, or they wait for ever.

        Raises:
            ValueError: supervised pose tokens and targets, given ones and poses, or image tokens and pictures do not match.
        """
        blank = not bool((input_ids == self.pose_config.image_token_id).any())
        pictures = None
        if any(name.startswith(("pixel_values", "image_patches")) for name in inputs):
            pictures = self.see_at_rest(inputs) if blank else self.see(inputs)
        elif not blank and labels is not None:
            count = int((input_ids == self.pose_config.image_token_id).sum())
            raise ValueError(f"{count} image tokens in the text, but no image")
        seen = self.image_tokens(input_ids, pictures)
        text = self.inputs_of_text(input_ids, pictures, inputs)
        if labels is None:
            with self._running(input_poses, input_pose_mask) as kept:
                given = {"position_ids": position_ids, "past_key_values": past_key_values, "use_cache": use_cache}
                text |= {name: value for name, value in given.items() if value is not None}
                output = self.vlm(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    logits_to_keep=logits_to_keep,
                    **text,
                )
            cache = getattr(output, "past_key_values", None)  # a Mamba's is of another name, and stays with it
            return LlavaPoseOutput(logits=output.logits, states=kept[0], past_key_values=cache, image_tokens=seen)

        shifted = labels[:, 1:]
        supervised = shifted != IGNORE_INDEX
        at_pose = supervised & (shifted == self.pose_config.pose_token_id)
        found, expected = int(at_pose.sum()), 0 if pose_targets is None else pose_targets.shape[0]
        if found != expected:
            raise ValueError(f"{found} supervised <pose6D> tokens, but {expected} pose targets")
        predicting = nn.functional.pad(supervised, (0, 1))
        unplaced = pictures.tokens.sum() + pictures.pooled.sum() if blank and pictures is not None else None
        with self._running(input_poses, input_pose_mask, trains=True, blank=unplaced) as kept:
            # keys and values of a training step are for no later step, and logits of other positions for nobody
            output = self.vlm(
                input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=predicting, use_cache=False, **text
            )
        states = kept[0]
        token_loss = text_loss(output.logits, shifted[supervised], num_items_in_batch)
        loss = self.pose_config.text_loss_weight * token_loss
        result = LlavaPoseOutput(image_tokens=seen)
        if not self.training:
            result.hits = output.logits.argmax(-1).reshape(-1) == shifted[supervised]
            result.rotations = states.new_zeros(0, 3, 3)
        if found and pose_targets is not None:
            read = self.read_poses(states[at_pose[supervised]], seen, at_pose.nonzero()[:, 0])
            poses, terms = pose_loss(
                read, pose_targets, self.pose_config, self.pose_head.representation, num_poses_in_batch
            )
            if not self.training:
                result.rotations = read.rotation
        else:
            poses = self._run_pose_head(states[:1], seen, supervised.nonzero()[:1, 0])
            terms = dict.fromkeys(POSE_TERMS, poses.detach())
        result.loss = loss + poses
        result.loss_terms = {"text": token_loss.detach(), **terms}
        return result

    def _run_pose_head(self, states: Tensor, seen: ImageTokens | None, rows: Tensor) -> Tensor:
        """Return zero, through the head: a batch without a pose must not leave other processes waiting."""
        output = self.read_poses(states, seen, rows)
        # not through the rotation: its gradient need not be finite for a state that means no pose
        return 0.0 * (output.raw_rotation.sum() + output.location.sum() + output.confidence_logit.sum())

    @torch.inference_mode()
    def answer(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        input_poses: Tensor | None = None,
        input_pose_mask: Tensor | None = None,
        inputs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> GeneratedAnswer:
        """Return what the backbone's own ``generate`` writes, and the state from which it predicted each token.

        Args:
            input_ids: (batch, length) prompts, padded on the left.
            inputs: of :meth:`see`, if there are pictures.
            options: of ``generate``.
        """
        pictures = self.see(inputs) if inputs else None
        text = self.inputs_of_text(input_ids, pictures, inputs)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        with self._running(input_poses, input_pose_mask) as states:
            sequences = cast(Any, self.vlm).generate(input_ids=input_ids, attention_mask=mask, **text, **options)
        return GeneratedAnswer(
            sequences[:, input_ids.shape[1] :],
            torch.stack([step[:, -1] for step in states], 1),
            self.image_tokens(input_ids, pictures),
        )

    def save_pretrained(
        self, folder: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None, **kwargs: Any
    ) -> None:
        """Write a checkpoint: the backbone's own, whole or as an adapter, with the pose parts beside it.

        Args:
            state_dict: this model's weights, where they are not at hand in it (ZeRO-3).
            kwargs: for the backbone's ``save_pretrained``.
        """
        state = cast(Mapping[str, Tensor], self.state_dict() if state_dict is None else state_dict)
        of_backbone = {
            name.removeprefix("backbone."): weight for name, weight in state.items() if name.startswith("backbone.")
        }
        if hasattr(self.backbone, "get_base_model"):
            kwargs["save_embedding_layers"] = False  # PEFT would ask the hub whether the vocabulary has grown
        cast(Any, self.backbone).save_pretrained(folder, state_dict=of_backbone, **kwargs)
        ours = {name: weight.detach().cpu().contiguous() for name, weight in pose_state(state).items()}
        save_file(ours, Path(folder) / POSE_WEIGHTS, metadata={"format": "pt"})
        self.pose_config.save(folder)


def pose_parts(config: LlavaPoseConfig) -> nn.ModuleDict:
    """Return the pose parts by name, with weights that mean nothing yet."""
    parts: dict[str, nn.Module] = {
        "pose_head": PoseHead(config),
        "pose_encoder": PoseEncoder(config),
        "pose_token_embedding": PoseTokenEmbedding(config.embedding_size),
        "pose_token_output": PoseTokenOutput(config.hidden_size),
    }
    return nn.ModuleDict(parts)


def pose_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the pose parts among those of a model."""
    return {name: weight for name, weight in state.items() if name.partition(".")[0] in POSE_PARTS}


__all__ = [
    "POSE_PARTS",
    "POSE_WEIGHTS",
    "GeneratedAnswer",
    "LlavaPoseForConditionalGeneration",
    "LlavaPoseOutput",
    "pose_parts",
    "pose_state",
]
