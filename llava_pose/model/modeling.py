"""LLaVA with a pose head: the hidden state that predicts `<pose6D>` is the state a pose is read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, LlavaForConditionalGeneration
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.models.llava.modeling_llava import LlavaModel

from llava_pose.data.conversation import IGNORE_INDEX
from llava_pose.model.checkpoint_files import NO_CODE
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.losses import POSE_TERMS, pose_loss, text_loss
from llava_pose.model.pose_head import (
    ImageTokens,
    PoseEncoder,
    PoseHead,
    PoseHeadOutput,
    PoseTokenEmbedding,
    PoseTokenOutput,
    PoseTokenRow,
    ZeroStartLinear,
)


@dataclass
class LlavaPoseOutput(ModelOutput):
    """Output of a forward pass.

    Attributes:
        loss: scalar, with labels.
        logits: (batch, length, vocabulary), without labels only: training and evaluation keep none.
        loss_terms: the unweighted terms of the loss, detached, for the log.
        image_tokens: what :meth:`LlavaPoseForConditionalGeneration.read_poses` sees of the pictures, where the head looks at
            them and the input was ids.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    last_hidden_state: Tensor | None = None
    image_tokens: ImageTokens | None = None
    loss_terms: dict[str, Tensor] | None = None


class LlavaPoseProjector(nn.Module):
    """LLaVA's two-layer projector behind an optional merge of m x m patches into one token.

    With m = 1 and no norm its parameters are LLaVA's own, by name and shape.
    """

    def __init__(self, config: LlavaPoseConfig):
        super().__init__()
        self.merge = config.vision_merge
        size = config.patch_channels * self.merge**2
        self.norm = nn.LayerNorm(size) if config.projector_norm else nn.Identity()
        self.linear_1 = nn.Linear(size, config.text_config.hidden_size, bias=config.multimodal_projector_bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(
            config.text_config.hidden_size, config.text_config.hidden_size, bias=config.multimodal_projector_bias
        )

    def forward(self, patches: Tensor) -> Tensor:
        """(batch, rows, columns, channels) -> (batch, tokens, hidden size), tokens in row-major order."""
        tokens = space_to_depth(patches, self.merge).flatten(1, 2)
        return self.linear_2(self.act(self.linear_1(self.norm(tokens.to(self.linear_1.weight.dtype)))))


def space_to_depth(maps: Tensor, block: int) -> Tensor:
    """(batch, rows, columns, c) -> (batch, rows / block, columns / block, c block^2).

    Raises:
        ValueError: rows or columns are no multiple of the block.
    """
    if block == 1:
        return maps
    batch, rows, columns, channels = maps.shape
    if rows % block or columns % block:
        raise ValueError(
            f"a map of {rows}x{columns} patches cannot be merged {block}x{block}: choose another image size"
        )
    maps = maps.reshape(batch, rows // block, block, columns // block, block, channels)
    return maps.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows // block, columns // block, block * block * channels)


class LlavaPoseModel(LlavaModel):
    """Vision tower, projector and language model. The tower may be a transformer or a convolutional network."""

    config: LlavaPoseConfig

    def __init__(self, config: LlavaPoseConfig):
        super(LlavaModel, self).__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config, **NO_CODE)
        self.multi_modal_projector = LlavaPoseProjector(config)  # type: ignore[assignment]  # in place of LLaVA's
        self.language_model = AutoModel.from_config(config.text_config, **NO_CODE)
        self.post_init()

    def train(self, mode: bool = True) -> LlavaPoseModel:
        """As torch's, but a frozen tower stays in evaluation mode: batch norms and dropout would change what it sees."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.vision_tower.parameters()):
            self.vision_tower.eval()
        return self

    def put_channels_last(self) -> None:
        """Lay the tower's convolutions out with the channels last, which makes them up to twice as fast.

        Not under DeepSpeed, which takes weights for rows of bytes. Layers of other kinds are not touched.
        """
        self.vision_tower.to(memory_format=torch.channels_last)

    def extract_patches(self, pixel_values: Tensor, *, at_rest: bool = False) -> Tensor:
        """What the tower sees, before the projector: (batch, 3, height, width) -> (batch, rows, columns, channels).

        Several feature layers are joined along the channels; finer maps of a convolutional tower are folded onto the grid
        of the coarsest.

        Args:
            at_rest: in evaluation mode whatever the mode is: blank pictures must not move the statistics of batch norms.
        """
        if at_rest and self.vision_tower.training:
            self.vision_tower.eval()
            try:
                return self.extract_patches(pixel_values)
            finally:
                self.vision_tower.train()
        hidden_states = self.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        layers = self.config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else list(layers)
        maps = [self._as_map(hidden_states[layer], pixel_values.shape[-2:]) for layer in layers]
        rows = min(m.shape[1] for m in maps)
        return torch.cat([space_to_depth(m, m.shape[1] // rows) for m in maps], -1)

    def _as_map(self, features: Tensor, image_size: torch.Size) -> Tensor:
        if features.dim() == 4:  # a convolutional tower: (batch, channels, rows, columns)
            return features.permute(0, 2, 3, 1)
        patch = self.config.vision_config.patch_size
        rows, columns = image_size[0] // patch, image_size[1] // patch
        if self.config.vision_feature_select_strategy == "full":
            return features[:, None]  # class token and all, as one row
        return features[:, features.shape[1] - rows * columns :].unflatten(1, (rows, columns))

    def get_image_features(self, pixel_values: Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Projected image tokens, as transformers' LLaVA gives them: ``pooler_output`` is a list, one for each image."""
        tokens = self.multi_modal_projector(self.extract_patches(pixel_values))
        return BaseModelOutputWithPooling(pooler_output=cast(Any, list(tokens)))


class LlavaPoseForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA that answers with text and poses.

    ``generate`` works as for LLaVA. :meth:`read_poses` turns hidden states into poses; with ``labels`` and
    ``pose_targets``, :meth:`forward` gives the training loss.
    """

    config: LlavaPoseConfig
    config_class = LlavaPoseConfig
    accepts_loss_kwargs = True

    def __init__(self, config: LlavaPoseConfig):
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = LlavaPoseModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.pose_head = PoseHead(config)
        self.pose_encoder = PoseEncoder(config)
        self.pose_token_embedding = PoseTokenEmbedding(config)
        self.pose_token_output = PoseTokenOutput(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # by the layers that own weights: transformers passes over a module that has none itself, such as the encoder
        if isinstance(module, ZeroStartLinear):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        if isinstance(module, PoseTokenRow):
            nn.init.zeros_(module.change)

    def embed_inputs(
        self,
        input_ids: Tensor,
        *,
        image_patches: Tensor | None = None,
        input_poses: Tensor | None = None,
        input_pose_mask: Tensor | None = None,
        run_every_module: bool = False,
    ) -> Tensor:
        """Token embeddings with image tokens and input poses in their places, (batch, length, hidden size).

        Args:
            input_ids: (batch, length).
            image_patches: (images, rows, columns, channels) from ``model.extract_patches``, in the order of their tokens.
            input_poses: (n, 6) poses given as input, in the order of the True of
            input_pose_mask: (batch, length) booleans, at `<pose6D>` tokens.
            run_every_module: run projector and encoder, at no effect, even where the batch has nothing for them, and take
                pictures without an image token for such blanks. Processes that train together must all run the same
                modules in the same order, or they wait for each other for ever.

        Raises:
            ValueError: image tokens and images, or pose tokens and poses, do not match.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        at_pose = input_ids == self.config.pose_token_id
        embeddings = embeddings + self.pose_token_embedding(at_pose).to(embeddings.dtype)
        at_image = input_ids == self.config.image_token_id
        embeddings = self._with_images(embeddings, at_image, image_patches, run_every_module)
        return self._with_poses(embeddings, input_pose_mask, input_poses, run_every_module)

    def _with_images(
        self, embeddings: Tensor, at_image: Tensor, patches: Tensor | None, run_every_module: bool
    ) -> Tensor:
        if run_every_module and not at_image.any():
            merge = self.config.vision_merge
            if patches is None:
                patches = embeddings.new_zeros(1, merge, merge, self.config.patch_channels)
            return embeddings + 0.0 * self.model.multi_modal_projector(patches).sum().to(embeddings.dtype)
        if patches is None:
            if run_every_module:
                raise ValueError(f"{int(at_image.sum())} image tokens in the text, but no image")
            return embeddings  # a token that generate drew is no picture
        tokens = self.model.multi_modal_projector(patches)
        if int(at_image.sum()) != tokens.shape[0] * tokens.shape[1]:
            raise ValueError(
                f"{int(at_image.sum())} image tokens in the text, but {tokens.shape[0]} images of {tokens.shape[1]} "
                "tokens: the processor's settings do not fit the model's"
            )
        return embeddings.masked_scatter(at_image[..., None], tokens.to(embeddings.dtype))

    def _with_poses(
        self, embeddings: Tensor, at_pose: Tensor | None, poses: Tensor | None, run_every_module: bool
    ) -> Tensor:
        found, given = 0 if at_pose is None else int(at_pose.sum()), 0 if poses is None else poses.shape[0]
        if found != given:
            raise ValueError(f"{found} input pose tokens, but {given} poses")
        if poses is None or at_pose is None or not given:
            if not run_every_module:
                return embeddings
            return embeddings + 0.0 * self.pose_encoder(embeddings.new_zeros(1, 6)).sum().to(embeddings.dtype)
        encoded = self.pose_encoder(poses).to(embeddings.dtype)
        return embeddings + torch.zeros_like(embeddings).masked_scatter(at_pose[..., None], encoded)

    def next_token_logits(self, states: Tensor) -> Tensor:
        """(..., hidden size) last hidden states -> (..., vocabulary) logits, with the trained row of `<pose6D>`."""
        logits = self.lm_head(states)
        logits[..., self.config.pose_token_id] += self.pose_token_output(states).to(logits.dtype)
        return logits

    def prepare_inputs_for_generation(  # type: ignore[override]  # what is not named here goes on as it is
        self, *args, inputs_embeds: Tensor | None = None, is_first_iteration: bool = False, **kwargs
    ) -> dict:
        """As LLaVA's; pictures and poses of the prompt belong to the step that reads it, and to none of a cached one."""
        # generate takes inputs_embeds only where this signature names it
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]  # args begin with the ids
            *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("image_patches", "input_poses", "input_pose_mask"):
                inputs.pop(name, None)
        return inputs

    def image_tokens(self, embeddings: Tensor, input_ids: Tensor, image_patches: Tensor | None) -> ImageTokens | None:
        """Of (batch, length, hidden size) :meth:`embed_inputs` and the patches that were given to it, for :meth:`read_poses`;
        None where the head does not look.
        """
        if not self.pose_head.looks:
            return None
        if image_patches is None:
            image_patches = embeddings.new_zeros(0, 1, 1, self.config.patch_channels)
        return ImageTokens.of_embeddings(embeddings, input_ids == self.config.image_token_id, image_patches)

    def read_poses(self, states: Tensor, seen: ImageTokens | None = None, rows: Tensor | None = None) -> PoseHeadOutput:
        """Poses from the (n, hidden size) last hidden states that predict `<pose6D>`.

        Args:
            seen: :meth:`image_tokens` of the batch.
            rows: (n,) the row of the batch that each state is of; None: state i is of row i.

        Raises:
            ValueError: the head looks at the picture, and ``seen`` is None.
        """
        return self.pose_head(states, seen if seen is None or rows is None else seen.of(rows))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        image_patches: Tensor | None = None,
        pose_targets: Tensor | None = None,
        input_poses: Tensor | None = None,
        input_pose_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_poses_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> LlavaPoseOutput:
        """Without labels, logits (for ``generate``); with them, the loss.

        Args:
            labels: (batch, length), -100 where no token is supervised.
            pose_targets: (n, 6) as ``pose_head.pose_targets_of`` gives them, one for each supervised `<pose6D>` in
                row-major order.
            num_items_in_batch, num_poses_in_batch: supervised tokens and poses of the whole optimiser step, by which the
                sums are divided, so that accumulating gradients changes nothing. By default those of this batch.
            The others are LLaVA's, or :meth:`embed_inputs`'s.

        Raises:
            ValueError: neither or both of input_ids and inputs_embeds; supervised pose tokens and targets do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        seen = None
        if input_ids is not None:
            if pixel_values is not None:
                blank = not bool((input_ids == self.config.image_token_id).any())
                image_patches = self.model.extract_patches(pixel_values, at_rest=blank)
            inputs_embeds = self.embed_inputs(
                input_ids,
                image_patches=image_patches,
                input_poses=input_poses,
                input_pose_mask=input_pose_mask,
                run_every_module=labels is not None,
            )
            seen = self.image_tokens(inputs_embeds, input_ids, image_patches)
        if labels is not None:
            kwargs.setdefault("use_cache", False)  # keys and values of a training step are for no later step
        outputs = self.model.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        states = outputs.last_hidden_state
        result = LlavaPoseOutput(
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            last_hidden_state=states,
            image_tokens=seen,
        )
        if labels is None:
            kept = states[:, -logits_to_keep:] if isinstance(logits_to_keep, int) else states[:, logits_to_keep]
            result.logits = self.next_token_logits(kept)
            return result

        shifted = labels[:, 1:]
        supervised = shifted != IGNORE_INDEX
        predicting = states[:, :-1]
        text = text_loss(self.next_token_logits(predicting[supervised]), shifted[supervised], num_items_in_batch)
        loss = self.config.text_loss_weight * text
        result.loss_terms = {"text": text.detach()}

        at_pose = supervised & (shifted == self.config.pose_token_id)
        found, expected = int(at_pose.sum()), 0 if pose_targets is None else pose_targets.shape[0]
        if found != expected:
            raise ValueError(f"{found} supervised <pose6D> tokens, but {expected} pose targets")
        if found and pose_targets is not None:
            poses, terms = pose_loss(
                self.read_poses(predicting[at_pose], seen, at_pose.nonzero()[:, 0]),
                pose_targets,
                self.config,
                self.pose_head.representation,
                num_poses_in_batch,
            )
        else:
            poses = self._run_pose_head(states[:, 0], seen)
            terms = dict.fromkeys(POSE_TERMS, poses.detach())
        result.loss = loss + poses
        result.loss_terms |= terms
        return result

    def _run_pose_head(self, states: Tensor, seen: ImageTokens | None) -> Tensor:
        """Zero, through the head: a batch without a pose must not leave other processes waiting."""
        output = self.read_poses(states, seen)
        # not through the rotation: its gradient need not be finite for a state that means no pose
        return 0.0 * (output.raw_rotation.sum() + output.location.sum() + output.confidence_logit.sum())


__all__ = [
    "LlavaPoseForConditionalGeneration",
    "LlavaPoseModel",
    "LlavaPoseOutput",
    "LlavaPoseProjector",
]
