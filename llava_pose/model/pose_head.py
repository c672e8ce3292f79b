"""The pose head (a pose read from a hidden state), the pose encoder (a pose given as input), the rows of `<pose6D>`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llava_pose.data.records import Pose
from llava_pose.model.configuration import LlavaPoseConfig
from llava_pose.model.rotation import rotation_representation
from llava_pose.pose.geometry import angles_from_rotation, rotation_matrix

_LOCATION_SIZE = 3


@dataclass
class PoseHeadOutput:
    """The output of the head for n poses.

    Attributes:
        raw_rotation: (n, representation size), for the loss.
        rotation: (n, 3, 3) world-to-camera.
        location: (n, 3): log apparent scale, and x, y of the principal point (:func:`normalize_location`).
        confidence_logit: (n,): logit of the probability that the error is under the configured threshold.
        features: (n, channels), the mean of the tower's patches, of the picture that each pose is of; None from a head that
            does not look at it.
    """

    raw_rotation: Tensor
    rotation: Tensor
    location: Tensor
    confidence_logit: Tensor
    features: Tensor | None = None

    def to_poses(self, *, width: Tensor, height: Tensor, viewport: Tensor) -> list[Pose]:
        """The poses in images of the given sizes (pixels) and viewports (pixels per unit focal length), each (n,)."""
        angles = torch.stack(angles_from_rotation(self.rotation.detach().double().cpu()), -1)
        location = denormalize_location(
            self.location.detach().double().cpu(), width=width.cpu(), height=height.cpu(), viewport=viewport.cpu()
        )
        return [Pose(*row) for row in torch.cat([angles, location], -1).tolist()]

    def of(self, rows: Sequence[int]) -> PoseHeadOutput:
        """Return the answers of these rows."""
        index = list(rows)
        raw, rotation, location, logit = (part[index] for part in self._parts())
        features = None if self.features is None else self.features[index]
        return PoseHeadOutput(raw, rotation, location, logit, features)

    def replaced(self, rows: Sequence[int], others: PoseHeadOutput) -> PoseHeadOutput:
        """Return these answers with others, about the same pictures, in the places of some rows."""
        raw, rotation, location, logit = (part.clone() for part in self._parts())
        for part, other in zip((raw, rotation, location, logit), others._parts(), strict=True):
            part[list(rows)] = other
        return PoseHeadOutput(raw, rotation, location, logit, self.features)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.raw_rotation, self.rotation, self.location, self.confidence_logit

    @property
    def confidence(self) -> Tensor:
        """(n,) in [0, 1]."""
        return self.confidence_logit.sigmoid()


@dataclass
class ImageTokens:
    """The image tokens that a pose head may see, row by row of a batch.

    Attributes:
        tokens: (rows, T, embedding size), what the language model is given of them, in the order they stand in.
        there: (rows, T) booleans: a row with fewer tokens than others has some that are none.
        pooled: (rows, channels), the mean of what the tower gives, before the connector; 0 without a picture.
    """

    tokens: Tensor
    there: Tensor
    pooled: Tensor

    @classmethod
    def of_pictures(cls, at_image: Tensor, tokens: Tensor, pooled: Tensor, counts: Sequence[int]) -> ImageTokens:
        """Those of pictures whose tokens stand at the (batch, length) booleans, row by row.

        Args:
            tokens: (n, embedding size) of all pictures, in the order of their places.
            pooled: (pictures, channels).
            counts: tokens of each picture. Where no token stands, there may be any.
        """
        longest = int(at_image.sum(1).max()) if len(at_image) else 0
        order = (~at_image).int().argsort(dim=1, stable=True)[:, :longest]
        index = (at_image.flatten().cumsum(0) - 1).view_as(at_image).gather(1, order)
        there = at_image.gather(1, order) & (index < len(tokens))  # a token that generate drew is no picture
        # none of them are taken in the same way, and so have a gradient: ZeRO-3 frees weights as gradients reach their inputs
        if len(tokens) or not longest:
            tokens = tokens[index.clamp(0, max(0, len(tokens) - 1))]
        else:
            tokens = tokens.new_zeros(*order.shape, tokens.shape[-1])
        # a product, so that pictures without a token have a gradient of zero: ZeRO-3 needs the same gradients everywhere
        shares = pooled.new_zeros(len(at_image), len(pooled))
        if bool(there.any()):
            first = torch.tensor([0, *itertools.accumulate(counts)][:-1], device=at_image.device)
            shares[at_image.nonzero()[first, 0], torch.arange(len(pooled), device=pooled.device)] = 1.0
            shares = shares / shares.sum(1, keepdim=True).clamp_min(1.0)
        return cls(tokens, there, shares @ pooled)

    @classmethod
    def joined(cls, parts: Sequence[ImageTokens]) -> ImageTokens:
        """Return those of several batches as one."""
        longest = max(part.tokens.shape[1] for part in parts)
        return cls(
            torch.cat([F.pad(part.tokens, (0, 0, 0, longest - part.tokens.shape[1])) for part in parts]),
            torch.cat([F.pad(part.there, (0, longest - part.there.shape[1])) for part in parts]),
            torch.cat([part.pooled for part in parts]),
        )

    def of(self, rows: Tensor) -> ImageTokens:
        """Return those of these rows, one for each of n states."""
        return ImageTokens(self.tokens[rows], self.there[rows], self.pooled[rows])


def normalize_location(
    distance: Tensor, px: Tensor, py: Tensor, *, width: Tensor, height: Tensor, viewport: Tensor
) -> Tensor:
    """(..., 3): log(viewport / (distance max(width, height))), px / width - 1/2, py / height - 1/2.

    One picture does not show distance, only how large the object appears: viewport / distance pixels for one object unit.
    """
    side = torch.maximum(width, height)
    return torch.stack([torch.log(viewport / (distance * side)), px / width - 0.5, py / height - 0.5], -1)


def denormalize_location(location: Tensor, *, width: Tensor, height: Tensor, viewport: Tensor) -> Tensor:
    """The inverse of :func:`normalize_location`: (..., 3) distance, px, py."""
    log_scale, x, y = location.unbind(-1)
    side = torch.maximum(width, height)
    # a runaway logarithm must not become an infinite distance
    distance = viewport / (side * torch.exp(log_scale.clamp(-12, 12)))
    return torch.stack([distance, (x + 0.5) * width, (y + 0.5) * height], -1)


class PictureAttention(nn.Module):
    """Attention of a state to the image tokens of its row: what the picture tells comes to the head past the language model,
    which has to learn first to carry it through its layers. A state whose row has no picture gets zero.
    """

    def __init__(self, config: LlavaPoseConfig):
        super().__init__()
        size, width = config.embedding_size, config.pose_head_hidden_size
        self.heads = config.pose_head_attention_heads
        self.norm = nn.LayerNorm(size)
        self.place = nn.Embedding(config.image_places, size)
        self.query = nn.Linear(config.hidden_size, width)
        self.key = nn.Linear(size, width, bias=False)
        self.value = nn.Linear(size, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, states: Tensor, seen: ImageTokens) -> Tensor:
        """(n, hidden size) normalised states and the image tokens of each -> (n, head's width)."""
        place = (seen.there.cumsum(1) - 1).clamp_min(0) % self.place.num_embeddings
        tokens = self.norm(seen.tokens.to(self.key.weight.dtype)) + self.place(place)
        query, key, value = self.query(states)[:, None], self.key(tokens), self.value(tokens)
        # a key and a value of zero: what a row without a picture attends to
        key, value = F.pad(key, (0, 0, 1, 0)), F.pad(value, (0, 0, 1, 0))
        mask = F.pad(seen.there, (1, 0), value=True)[:, None, None]
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(found.transpose(1, 2).flatten(2)[:, 0])


class ZeroStartLinear(nn.Linear):
    """A linear layer that a fresh model starts at zero (``LlavaPoseForConditionalGeneration.draw_weights``)."""


class PooledFeatures(nn.Module):
    """A pose classifier with mean pooling and a linear head, which starts at nothing. The shortest way from the
    tower to a pose: a tower that is trained learns by it what turns an object, long before the other ways teach it.
    """

    def __init__(self, config: LlavaPoseConfig, outputs: int):
        super().__init__()
        self.norm = nn.LayerNorm(config.pooled_size)
        self.linear = ZeroStartLinear(config.pooled_size, outputs)

    def forward(self, seen: ImageTokens) -> Tensor:
        """(n, outputs) to add to the head's; zero for a row without a picture."""
        told = self.linear(self.norm(seen.pooled.to(self.linear.weight.dtype)))
        return told * seen.there.any(1, keepdim=True)


class PoseHead(nn.Module):
    """LayerNorm and a two-layer MLP from the hidden state that predicts `<pose6D>` to a pose.

    With ``pose_head_attention_heads`` the hidden layer sees the image tokens, too (:class:`PictureAttention`); with
    ``pose_head_pooled_features`` the outputs see the tower's mean (:class:`PooledFeatures`).
    """

    def __init__(self, config: LlavaPoseConfig):
        super().__init__()
        self.representation = rotation_representation(config.rotation)
        size = config.hidden_size
        outputs = self.representation.size + _LOCATION_SIZE + 1
        self.norm = nn.LayerNorm(size)
        self.look = PictureAttention(config) if config.pose_head_attention_heads else None
        self.pooled = PooledFeatures(config, outputs) if config.pose_head_pooled_features else None
        self.linear_1 = nn.Linear(size, config.pose_head_hidden_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(config.pose_head_hidden_size, outputs)

    @property
    def looks(self) -> bool:
        """Say whether it needs to see the picture."""
        return self.look is not None or self.pooled is not None

    def forward(self, states: Tensor, seen: ImageTokens | None = None) -> PoseHeadOutput:
        """The head's answer, in float32 or better.

        Args:
            states: (n, hidden size).
            seen: the pictures of each state's row; needed by a head that looks.

        Raises:
            ValueError: it looks, and there are none.
        """
        if self.looks and seen is None:
            raise ValueError("this pose head looks at the picture: give the image tokens of each state's row")
        with torch.autocast(
            states.device.type, enabled=False
        ):  # bfloat16 would round the rotation by a third of a degree
            normed = self.norm(states.to(self.norm.weight.dtype))
            hidden = self.linear_1(normed)
            if self.look is not None:
                hidden = hidden + self.look(normed, seen)
            raw = self.linear_2(self.act(hidden))
            if self.pooled is not None:
                raw = raw + self.pooled(seen)
            raw = raw.float()
        rotation, location, confidence = raw.split([self.representation.size, _LOCATION_SIZE, 1], -1)
        features = None if seen is None else seen.pooled.detach()
        return PoseHeadOutput(
            rotation, self.representation.decode(rotation), location, confidence.squeeze(-1), features
        )

    def modes(self, output: PoseHeadOutput) -> tuple[np.ndarray, np.ndarray]:
        """Angles (n, k, 3) in radians of the rotations that n answers hold likely, and their probabilities (n, k)."""
        rotations, shares = self.representation.modes(output.raw_rotation.detach())
        angles = torch.stack(angles_from_rotation(rotations.double().cpu()), -1)
        return angles.numpy(), shares.double().cpu().numpy()

    def with_mirror_images(self, output: PoseHeadOutput, of_mirror: PoseHeadOutput, both: Tensor) -> PoseHeadOutput:
        """Answers for n pictures and for their mirror images as one: the means of what the head puts out.

        Args:
            both: (n,) booleans: where not, the picture's own answer stands.
        """
        rotation = self.representation.with_mirror_images(output.raw_rotation, of_mirror.raw_rotation, both)
        both = both[:, None]
        across = output.location.new_tensor([1.0, -1.0, 1.0])
        location = torch.where(both, (output.location + across * of_mirror.location) / 2, output.location)
        logit = (output.confidence_logit + of_mirror.confidence_logit) / 2
        logit = torch.where(both[:, 0], logit, output.confidence_logit)
        return PoseHeadOutput(rotation, self.representation.decode(rotation), location, logit, output.features)


class PoseEncoder(nn.Module):
    """A pose given as input, added to the embedding of its `<pose6D>`: rotation matrix and location through an MLP.

    The last layer starts at zero, so that a fresh encoder leaves a base model as it is. An unknown location (NaN) is 0.
    """

    def __init__(self, config: LlavaPoseConfig):
        super().__init__()
        self.linear_1 = nn.Linear(9 + _LOCATION_SIZE, config.pose_head_hidden_size)
        self.act = nn.GELU()
        self.linear_2 = ZeroStartLinear(config.pose_head_hidden_size, config.embedding_size)

    def forward(self, poses: Tensor) -> Tensor:
        """(n, 6) azimuth, elevation, theta (radians) and normalised location -> (n, embedding size)."""
        rotation = rotation_matrix(*poses[:, :3].float().unbind(-1)).flatten(-2)
        features = torch.cat([rotation, torch.nan_to_num(poses[:, 3:].float(), nan=0.0)], -1)
        return self.linear_2(self.act(self.linear_1(features.to(self.linear_1.weight.dtype))))


class PoseTokenRow(nn.Module):
    """A trained change, zero at first, of the row of `<pose6D>` in the embedding or in the output layer.

    One vector learns and the matrix stays as it is: it may be tied, quantised or sharded by ZeRO-3, and neither the
    optimiser nor a checkpoint holds every row for the sake of one.
    """

    def __init__(self, size: int):
        super().__init__()
        self.change = nn.Parameter(torch.zeros(1, size))


class PoseTokenEmbedding(PoseTokenRow):
    """The change of the embedding's row."""

    def forward(self, at_token: Tensor) -> Tensor:
        """(batch, length) booleans at `<pose6D>` -> (batch, length, embedding size) to add to the embeddings."""
        return at_token[..., None].to(self.change.dtype) @ self.change


class PoseTokenOutput(PoseTokenRow):
    """The change of the output layer's row."""

    def forward(self, states: Tensor) -> Tensor:
        """(..., hidden size) states -> (...) to add to the logits of `<pose6D>`."""
        return F.linear(states.to(self.change.dtype), self.change).squeeze(-1)
