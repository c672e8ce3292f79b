"""The work of `llava-pose prepare` on one image: a function of its files and the options, for any pool of workers."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.prepare.crop import Crop, RawImage, box_crop, encode_jpeg, pose_crop, whole_crop
from data_prep.raw.imagenet3d import (
    AnnotatedObject,
    AnnotationError,
    RawLayout,
    filter_reason,
    parse_object,
    read_annotation,
)
from data_prep.raw.safe_npz import shown
from llava_pose.data.records import ObjectRecord, Pose
from llava_pose.errors import InputError
from llava_pose.pose import categories
from llava_pose.pose.geometry import crop_principal
from llava_pose.utils.files import is_plain_name, read_bytes, replacing, shortened

_CATEGORY = re.compile(r"\w[\w .'()&+-]*")  # no marks such as <image>, no lists, no paths
_MOST_LETTERS = 60
_MOST_IMAGE_BYTES = 1 << 29  # of an image file: more than the pixels that are decoded at most can have
_MOST_TIMES_LARGER = (
    20  # than its crop: beyond, distances are no multiples of the object's size, and the crop one colour
)


@dataclass(frozen=True, slots=True)
class ImageJob:
    """One listed image."""

    split: str
    category: str
    name: str

    @property
    def key(self) -> str:
        return f"{self.category}/{self.name}"


@dataclass(frozen=True)
class ImageOptions:
    """What is the same for all images; the fields of PrepareConfig."""

    data_root: Path
    out: Path
    crop: str
    size: int
    margin: float
    allow_custom_categories: bool = False


@dataclass
class ImageResult:
    """What became of one listed image: JSON-ready, one line of the journal that a restarted run goes on from.

    Attributes:
        stamp: modification time (ns) and size of image and annotation when they were read; 0 for a missing file.
        digest: of the image file's bytes; "" if it was not read. Equal digests are the same picture.
        records: an ObjectRecord's dict for each object written.
        sizes: bytes of each record's prepared image, in the order of the records.
        filtered: the reason for each object that the protocol leaves out.
        rejects: file, object_index (None: the image as a whole), reason and sentence of each object that is bad.
    """

    key: str
    stamp: list[int]
    digest: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    filtered: list[str] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> str:
        """What ``ImageResult(**json.loads(…))`` reads."""
        return json.dumps(vars(self), allow_nan=False)

    def reject(self, file: str, object_index: int | None, reason: str, sentence: str) -> None:
        reject = {"file": file, "object_index": object_index, "reason": reason, "sentence": sentence}
        self.rejects.append(reject)


@dataclass(frozen=True)
class _Candidate:
    index: int
    object: AnnotatedObject
    category: str


def prepare_image(job: ImageJob, options: ImageOptions) -> ImageResult:
    """Read, check, crop and write one image. Bad input becomes rejects; only a failure to write is raised, as InputError."""
    layout = RawLayout(options.data_root)
    result = ImageResult(job.key, stamp(job, layout))
    if not is_plain_name(job.name):
        file = _relative(layout.list_file(job.category, job.split), layout)
        sentence = f"{file} lists {shortened(job.name)}, which is no plain file name; mend the list"
        result.reject(file, None, "bad name", sentence)
        return result
    candidates = _read_candidates(job, layout, options, result)
    if not candidates:
        return result
    image_path = layout.image(job.category, job.name)
    image_file = _relative(image_path, layout)
    try:
        image, content_digest = _open_image(image_path, candidates)
        result.digest = content_digest
        # an object that does not fit its image spoils itself, an image that cannot be decoded all its objects
        candidates = [c for c in candidates if _shows_object(c, image, options, result, image_file)]
        crops = [_crop(candidate.object, image, options) for candidate in candidates]
        # objects that are seen in the same picture share it
        distinct = list(dict.fromkeys(crops)) if options.crop == "whole" else crops
        pictures = image.crops(distinct) if distinct else []
    except AnnotationError as error:
        for candidate in candidates:
            result.reject(image_file, candidate.index, error.reason, f"{image_file} {error}")
        return result
    sizes: dict[str, int] = {}
    for candidate, crop in zip(candidates, crops, strict=True):
        file_name = _file_name(job, candidate, options)
        if file_name not in sizes:
            content = encode_jpeg(pictures[len(sizes)])
            _write(options.out / job.split / file_name, content)
            sizes[file_name] = len(content)
        result.records.append(_record(job, candidate, crop, file_name, image, image_file, layout).to_dict())
        result.sizes.append(sizes[file_name])
    return result


def stamp(job: ImageJob, layout: RawLayout) -> list[int]:
    """What tells that an image or its annotation has changed since it was prepared."""
    if not is_plain_name(job.name):
        return []
    values = []
    for path in (layout.image(job.category, job.name), layout.annotation(job.category, job.name)):
        try:
            status = path.stat()
        except OSError:
            values += [0, 0]
        else:
            values += [status.st_mtime_ns, status.st_size]
    return values


def _relative(path: Path, layout: RawLayout) -> str:
    return path.relative_to(layout.root).as_posix()


def _read_candidates(
    job: ImageJob, layout: RawLayout, options: ImageOptions, result: ImageResult
) -> Sequence[_Candidate]:
    path = layout.annotation(job.category, job.name)
    file = _relative(path, layout)
    if not os.path.exists(path):
        result.reject(file, None, "annotation missing", f"{file} is not there; add it or take the name off the list")
        return []
    try:
        raw_objects = read_annotation(path)
    except InputError as error:
        sentence = str(error).replace(str(path), file)
        result.reject(file, None, "annotation unreadable", sentence)
        return []
    if not raw_objects:
        result.reject(file, None, "annotation empty", f"{file} holds no object; take the name off the list")
    candidates = []
    for index, raw in enumerate(raw_objects):
        left_out = filter_reason(raw)
        if left_out is not None:
            result.filtered.append(left_out)
            continue
        try:
            parsed = parse_object(raw)
            # the folder is where the image is filed; objects of other classes may stand in it
            category = parsed.category or job.category
            _require_usable(category, options)
        except AnnotationError as error:
            result.reject(file, index, error.reason, f"{file} object {index}: {error}")
            continue
        candidates.append(_Candidate(index, parsed, category))
    return candidates


def _require_usable(category: str, options: ImageOptions) -> None:
    """Known, or of the user's own if these are welcome: its name then goes into sentences and names folders."""
    if categories.find(category) is not None:
        return
    if not options.allow_custom_categories:
        try:
            categories.get(category)
        except InputError as error:
            raise AnnotationError("unknown category", f"{error} with --allow-custom-categories") from error
    if len(category) > _MOST_LETTERS or not _CATEGORY.fullmatch(category):
        raise AnnotationError(
            "category malformed",
            f"'class' {shown(category)!r} cannot name a category; use letters, digits, spaces, and _ - . ' ( ) & + only",
        )


def _open_image(path: Path, candidates: Sequence[_Candidate]) -> tuple[RawImage, str]:
    try:
        content = read_bytes(path, most=_MOST_IMAGE_BYTES)
    except FileNotFoundError as error:
        raise AnnotationError("image missing", "is not there; add it or take the name off the list") from error
    except OSError as error:
        raise AnnotationError("image unreadable", f"cannot be read ({error.strerror}); check it") from error
    sizes = {(c.object.width, c.object.height) for c in candidates if c.object.width and c.object.height}
    if len(sizes) > 1:
        raise AnnotationError("image size differs", "has objects annotated at different sizes; annotate it again")
    image = RawImage(content, sizes.pop() if sizes else (0, 0))
    return image, hashlib.blake2b(content, digest_size=16).hexdigest()


def _file_name(job: ImageJob, candidate: _Candidate, options: ImageOptions) -> str:
    """Of the prepared image, relative to its split: the whole picture once, a crop for each object."""
    return f"{job.key}.JPEG" if options.crop == "whole" else f"{job.key}_{candidate.index:02d}.JPEG"


def _crop(parsed: AnnotatedObject, image: RawImage, options: ImageOptions) -> Crop:
    if options.crop == "whole":
        return whole_crop(image.width, image.height, options.size)
    if options.crop == "box":
        return box_crop(parsed.bbox, options.margin, options.size)
    return pose_crop(parsed.px, parsed.py, parsed.distance, options.size)


_WHY_NOTHING = {
    "pose": "px, py and distance give a crop that misses the bbox",
    "box": "the bbox shows less than a pixel of the image",
    "whole": "no pixel of the letterboxed image shows the bbox",
}


def _shows_object(
    candidate: _Candidate, image: RawImage, options: ImageOptions, result: ImageResult, image_file: str
) -> bool:
    crop = _crop(candidate.object, image, options)
    x1, y1, x2, y2 = candidate.object.bbox
    if x2 <= 0 or y2 <= 0 or x1 >= image.width or y1 >= image.height:
        size = f"{image.width}x{image.height}"
        reason, why = "bbox outside image", f"the bbox {list(candidate.object.bbox)} lies outside of the {size} image"
    else:
        left, top, right, bottom = crop.visible(image.width, image.height)
        bx1, by1, bx2, by2 = crop.box(candidate.object.bbox)
        if max(left, bx1) >= min(right, bx2) or max(top, by1) >= min(bottom, by2):
            reason, why = "crop shows nothing", _WHY_NOTHING[options.crop]
        elif max(bx2 - bx1, by2 - by1) > _MOST_TIMES_LARGER * crop.size:
            times = f"{max(bx2 - bx1, by2 - by1) / crop.size:.0f} times as large as the crop that its distance gives"
            reason, why = "crop shows too little", f"the bbox is {times} (is it in units of the object's size?)"
        else:
            return True
    sentence = f"{image_file} object {candidate.index}: {why}; annotate the object again"
    result.reject(image_file, candidate.index, reason, sentence)
    return False


def _record(
    job: ImageJob,
    candidate: _Candidate,
    crop: Crop,
    file_name: str,
    image: RawImage,
    image_file: str,
    layout: RawLayout,
) -> ObjectRecord:
    parsed = candidate.object
    px, py, viewport = crop_principal(
        parsed.px, parsed.py, parsed.viewport, left=crop.left, top=crop.top, scale=crop.scale
    )
    return ObjectRecord(
        file_name=file_name,
        id=f"{job.key}/{candidate.index}",
        category=candidate.category,
        pose=Pose(parsed.azimuth, parsed.elevation, parsed.theta, parsed.distance, float(px), float(py)),
        viewport=float(viewport),
        width=crop.size,
        height=crop.size,
        bbox=crop.box(parsed.bbox),
        focal=parsed.focal,
        object_status=parsed.object_status,
        crop={"left": crop.left, "top": crop.top, "scale": crop.scale},
        # each key always there and always of one type: Arrow infers the columns of metadata.jsonl from its lines
        source={
            "image": image_file,
            "annotation": _relative(layout.annotation(job.category, job.name), layout),
            "object_index": candidate.index,
            "width": image.width,
            "height": image.height,
            "exif_transposed": image.exif_transposed,
            "class": parsed.category,
            "cad_index": parsed.cad_index,
            "dense": parsed.dense,
            "source": parsed.source,
            "instance": parsed.instance,
            "extra": json.dumps(parsed.extra, ensure_ascii=False, default=str),
            "absent": " ".join(parsed.absent),
        },
    )


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all. Not forced to disk: the journal holds the size, and a restarted run looks at it."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
