"""All kinds of questions by name.

One whose words stay true when the picture is turned and shifted is named in ``llava_pose.data.dataset``, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from data_prep.caption.lines import CaptionLine
from data_prep.questions.base import Kind
from data_prep.questions.boxes import BoxJointKind, BoxKind, LocateKind, SeveralKind
from data_prep.questions.captioned import CaptionKind
from data_prep.questions.given import GivenKind, VerifyKind, WhichKind
from data_prep.questions.relative import RelativeKind
from data_prep.questions.single import DescribedKind, JointKind, ListedKind, PoseKind
from data_prep.questions.words import ChoiceKind, YesNoKind


def make_kinds(
    captions: Mapping[str, CaptionLine] | None = None, descriptions: Mapping[str, str] | None = None
) -> dict[str, Kind]:
    """Make all kinds, by name, those of the default first.

    Args:
        captions: picture (relative to its split) -> its line of captions.jsonl; without it, the grammar writes captions.
        descriptions: canonical category -> a description in place of the taxonomy's.
    """
    kinds: tuple[Kind, ...] = (
        JointKind(),
        PoseKind(),
        CaptionKind(captions),
        ListedKind(),
        DescribedKind(descriptions),
        BoxKind(),
        BoxJointKind(),
        LocateKind(),
        SeveralKind(),
        YesNoKind(),
        ChoiceKind(),
        RelativeKind(),
        VerifyKind(),
        WhichKind(),
        GivenKind(),
    )
    return {kind.name: kind for kind in kinds}


KIND_NAMES = tuple(make_kinds())
