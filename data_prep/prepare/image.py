"""The work of ``llava-pose prepare`` on one image: a function of its files and the options, for any pool of workers.

What became of an image stands in a file of its own, ``.prepare/<split>/<category>/<name>.json``, with the dates and sizes of
all files that it was made of and that were made. An image whose file says what is there is done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.prepare.crop import (
    Crop,
    RawImage,
    box_crop,
    encode_jpeg,
    pose_crop,
    published_crop,
    published_resize,
    whole_crop,
)
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

RESULTS_FOLDER = ".prepare"  # in the output folder
_CATEGORY = re.compile(r"\w[\w .'()&+-]*")  # no marks such as <image>, no lists, no paths
_MOST_LETTERS = 60
_MOST_IMAGE_BYTES = 1 << 29  # of an image file: more than the pixels that are decoded at most can have
_FRAME_UNKNOWN = ("image size differs", "image orientation unknown")
# times as large as its crop: beyond, distances are no multiples of the object's size, and the crop is one colour
_MOST_TIMES_LARGER = 20


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
    published_filter: bool = False
    published: bool = False  # the whole profile: the filter, its pixels, and labels by folder


@dataclass
class ImageResult:
    """What became of one listed image, ready for JSON.

    Attributes:
        stamp: modification time (ns) and size of image and annotation when they were read; 0 for a missing file.
        digest: of the image file's bytes; "" if it was not read. Equal digests are the same picture.
        records: an ObjectRecord's dict for each object written.
        sizes: bytes of each prepared picture, by its name in the records.
        filtered: the reason for each object that the protocol leaves out.
        rejects: file, object_index (None: the image as a whole), reason and sentence of each object that is bad.
        classes_by_folder: the class of each object written that the taxonomy does not know, and that its folder names.
        kept_faults: with the published filter, why each object written would have been rejected that would have been.
    """

    key: str
    stamp: list[int]
    digest: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    filtered: list[str] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    classes_by_folder: list[str] = field(default_factory=list)
    kept_faults: list[str] = field(default_factory=list)

    def reject(self, file: str, object_index: int | None, reason: str, sentence: str) -> None:
        reject = {"file": file, "object_index": object_index, "reason": reason, "sentence": sentence}
        self.rejects.append(reject)


def result_file(out: Path, job: ImageJob) -> Path:
    """Return where it is written what became of an image."""
    return out / RESULTS_FOLDER / job.split / job.category / f"{job.name}.json"


def read_result(path: Path) -> ImageResult | None:
    """Return what became of an image; None if that is not written, or not whole."""
    try:
        return ImageResult(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def result_of(job: ImageJob, options: ImageOptions) -> ImageResult:
    """Return what became of an image, which is prepared if it is not."""
    result = read_result(result_file(options.out, job)) if is_plain_name(job.name) else None
    return prepare_image(job, options) if result is None else result


def bring_up_to_date(job: ImageJob, options: ImageOptions) -> bool:
    """Prepare an image, unless it is done and nothing has changed since; return whether it was prepared now.

    Raises:
        InputError: a file cannot be written.
    """
    if not is_plain_name(job.name):  # of which nothing can be written
        return False
    path = result_file(options.out, job)
    earlier = read_result(path)
    if earlier is not None and earlier.stamp == stamp(job, RawLayout(options.data_root)):
        pictures = options.out / job.split
        if all(_date_and_size(pictures / name)[1] == size for name, size in earlier.sizes.items()):
            return False
    _write(path, json.dumps(vars(prepare_image(job, options)), allow_nan=False).encode())
    return True


def prepare_image(job: ImageJob, options: ImageOptions) -> ImageResult:
    """Read, check, crop and write one image. Bad input becomes rejects; only a failure to write is raised, as InputError."""
    layout = RawLayout(options.data_root)
    result = ImageResult(job.key, stamp(job, layout))
    if not is_plain_name(job.name):
        file = _relative(layout.list_file(job.category, job.split), layout)
        sentence = f"{file} lists {shortened(job.name)}, which is no plain file name; mend the list"
        result.reject(file, None, "bad name", sentence)
        return result
    objects = dict(_annotated_objects(job, layout, options, result))
    if not objects:
        return result
    image_path = layout.image(job.category, job.name)
    image_file = _relative(image_path, layout)
    try:
        image, fault = _open_image(image_path, list(objects.values()), result, options)
        crops: dict[int, Crop] = {}
        # an object that does not fit its image spoils itself, an image that cannot be decoded all its objects
        for index, annotated in list(objects.items()):
            faults = [*annotated.faults, *([fault] if fault else [])]
            try:
                crops[index] = _crop(annotated, image, options)
                try:
                    _require_shown(annotated, image, crops[index], options)
                except AnnotationError as error:
                    if not options.published_filter:
                        raise
                    faults.append(error.reason)
                objects[index] = replace(annotated, faults=tuple(faults))
            except AnnotationError as error:
                crops.pop(index, None)
                sentence = f"{image_file} object {index}: {error}; annotate the object again"
                result.reject(image_file, index, error.reason, sentence)
                del objects[index]
        # with --crop whole, the objects share a picture
        names = {
            index: f"{job.key}.JPEG" if options.crop == "whole" else f"{job.key}_{index:02d}.JPEG" for index in crops
        }
        by_name = {names[index]: crop for index, crop in crops.items()}
        make = image.published_crops if options.published else image.crops
        pictures = make(list(by_name.values())) if by_name else []
    except AnnotationError as error:
        for index in objects:
            result.reject(image_file, index, error.reason, f"{image_file} {error}")
        return result
    for name, picture in zip(by_name, pictures, strict=True):
        content = encode_jpeg(picture, published=options.published)
        _write(options.out / job.split / name, content)
        result.sizes[name] = len(content)
    for index, annotated in objects.items():
        category = _category_of(annotated, job, options)
        record = _record(job, index, annotated, crops[index], names[index], image, image_file, layout, category)
        result.records.append(record.to_dict())
        result.kept_faults += annotated.faults[:1]
        if annotated.category not in ("", category):
            result.classes_by_folder.append(shown(annotated.category))
    return result


def stamp(job: ImageJob, layout: RawLayout) -> list[int]:
    """Return what tells that an image or its annotation has changed since it was prepared."""
    if not is_plain_name(job.name):
        return []
    paths = layout.image(job.category, job.name), layout.annotation(job.category, job.name)
    return [value for path in paths for value in _date_and_size(path)]


def _date_and_size(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _relative(path: Path, layout: RawLayout) -> str:
    return path.relative_to(layout.root).as_posix()


def _annotated_objects(
    job: ImageJob, layout: RawLayout, options: ImageOptions, result: ImageResult
) -> Iterator[tuple[int, AnnotatedObject]]:
    """Yield the objects that can be used, with their indices; what becomes of the others is in the result."""
    path = layout.annotation(job.category, job.name)
    file = _relative(path, layout)
    if not os.path.exists(path):
        result.reject(file, None, "annotation missing", f"{file} is not there; add it or take the name off the list")
        return
    try:
        raw_objects = read_annotation(path)
    except InputError as error:
        result.reject(file, None, "annotation unreadable", str(error).replace(str(path), file))
        return
    if not raw_objects:
        result.reject(file, None, "annotation empty", f"{file} holds no object; take the name off the list")
    for index, raw in enumerate(raw_objects):
        try:
            left_out = filter_reason(raw, published=options.published_filter)
            if left_out is not None:
                result.filtered.append(left_out)
                continue
            annotated = parse_object(raw, published=options.published_filter)
            _require_usable(_category_of(annotated, job, options), options)
        except AnnotationError as error:
            result.reject(file, index, error.reason, f"{file} object {index}: {error}")
            continue
        yield index, annotated


def _category_of(annotated: AnnotatedObject, job: ImageJob, options: ImageOptions) -> str:
    """Return the object's class, or its folder's name where it has none, or none that is known while the folder's is.

    The folder is where the image is filed; objects of other classes may stand in it. What cannot be a name at all stays, and is
    refused: such an annotation is damaged.
    """
    if not annotated.category or options.published:
        return job.category
    if options.allow_custom_categories or categories.find(annotated.category) or not _can_name(annotated.category):
        return annotated.category
    return job.category if categories.find(job.category) else annotated.category


def _can_name(category: str) -> bool:
    return len(category) <= _MOST_LETTERS and _CATEGORY.fullmatch(category) is not None


def _require_usable(category: str, options: ImageOptions) -> None:
    """Raise AnnotationError for a category that is neither known nor, where these are welcome, fit for sentences and names."""
    if categories.find(category) is not None:
        return
    if not options.allow_custom_categories:
        try:
            categories.get(category)
        except InputError as error:
            raise AnnotationError("unknown category", str(error)) from error
    if not _can_name(category):
        raise AnnotationError(
            "category malformed",
            f"'class' {shown(category)!r} cannot name a category; use letters, digits, spaces, and _ - . ' ( ) & + only",
        )


def _open_image(
    path: Path, objects: list[AnnotatedObject], result: ImageResult, options: ImageOptions
) -> tuple[RawImage, str]:
    """Open an image; with the published filter, which looks at no size, also one that is not as it was annotated.

    Returns:
        the image, and why it would have been refused; "" where it would not.
    """
    try:
        content = read_bytes(path, most=_MOST_IMAGE_BYTES)
    except FileNotFoundError as error:
        raise AnnotationError("image missing", "is not there; add it or take the name off the list") from error
    except OSError as error:
        raise AnnotationError("image unreadable", f"cannot be read ({error.strerror}); check it") from error
    sizes = {(annotated.width, annotated.height) for annotated in objects if annotated.width and annotated.height}
    fault = ""
    try:
        if len(sizes) > 1:
            raise AnnotationError("image size differs", "has objects annotated at different sizes; annotate it again")
        image = RawImage(content, sizes.pop() if sizes else (0, 0))
    except AnnotationError as error:
        if not options.published_filter or error.reason not in _FRAME_UNKNOWN:
            raise
        image, fault = RawImage(content, None), error.reason
    if options.published and image.exif_transposed:
        image, fault = RawImage(content, None), "image size differs"
    result.digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return image, fault


_WHY_NOTHING = {
    "pose": "px, py and distance give a crop that misses the bbox",
    "box": "the bbox shows less than a pixel of the image",
    "whole": "no pixel of the letterboxed image shows the bbox",
}


def _crop(annotated: AnnotatedObject, image: RawImage, options: ImageOptions) -> Crop:
    """Return the crop of an object.

    Raises:
        AnnotationError: the published filter is asked for, and the published preprocessing would end at this object.
    """
    if options.crop == "whole":
        return whole_crop(image.width, image.height, options.size)
    if options.crop == "box":
        return box_crop(annotated.bbox, options.margin, options.size)
    if options.published_filter:
        rate, window = published_resize(annotated.distance)
        if min(image.width, image.height) * rate < 1 or window < 1:
            words = f"'distance' {annotated.distance:g} resizes the image beyond measure"
            raise AnnotationError("distance out of range", words)
        if options.published:
            return published_crop(annotated.px, annotated.py, annotated.distance)
    return pose_crop(annotated.px, annotated.py, annotated.distance, options.size)


def _require_shown(annotated: AnnotatedObject, image: RawImage, crop: Crop, options: ImageOptions) -> None:
    """Raise AnnotationError for a crop that would not show the object."""
    x1, y1, x2, y2 = annotated.bbox
    if x2 <= 0 or y2 <= 0 or x1 >= image.width or y1 >= image.height:
        size = f"{image.width}x{image.height}"
        raise AnnotationError("bbox outside image", f"the bbox {[x1, y1, x2, y2]} lies outside of the {size} image")
    left, top, right, bottom = crop.visible(image.width, image.height)
    x1, y1, x2, y2 = crop.box(annotated.bbox)
    if max(left, x1) >= min(right, x2) or max(top, y1) >= min(bottom, y2):
        raise AnnotationError("crop shows nothing", _WHY_NOTHING[options.crop])
    times = max(x2 - x1, y2 - y1) / crop.size
    if times > _MOST_TIMES_LARGER:
        words = f"{times:.0f} times as large as the crop that its distance gives"
        raise AnnotationError("crop shows too little", f"the bbox is {words} (is it in units of the object's size?)")


def _record(
    job: ImageJob,
    index: int,
    annotated: AnnotatedObject,
    crop: Crop,
    file_name: str,
    image: RawImage,
    image_file: str,
    layout: RawLayout,
    category: str,
) -> ObjectRecord:
    px, py, viewport = crop_principal(
        annotated.px, annotated.py, annotated.viewport, left=crop.left, top=crop.top, scale=crop.scale
    )
    return ObjectRecord(
        file_name=file_name,
        id=f"{job.key}/{index}",
        category=category,
        pose=Pose(annotated.azimuth, annotated.elevation, annotated.theta, annotated.distance, float(px), float(py)),
        viewport=float(viewport),
        width=crop.size,
        height=crop.size,
        bbox=crop.box(annotated.bbox),
        focal=annotated.focal,
        object_status=annotated.object_status,
        crop={"left": crop.left, "top": crop.top, "scale": crop.scale},
        # each key always there and always of one type: Arrow infers the columns of metadata.jsonl from its lines
        source={
            "image": image_file,
            "annotation": _relative(layout.annotation(job.category, job.name), layout),
            "object_index": index,
            "width": image.width,
            "height": image.height,
            "exif_transposed": image.exif_transposed,
            "class": annotated.category,
            "cad_index": annotated.cad_index,
            "dense": annotated.dense,
            "source": annotated.source,
            "instance": annotated.instance,
            "extra": json.dumps(annotated.extra, ensure_ascii=False, default=str),
            "absent": " ".join(annotated.absent),
        },
    )


def _write(path: Path, content: bytes) -> None:
    """Write whole or not at all. Not forced to disk: a picture's size is written down, and looked at in another run."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
