"""`llava-pose objectron`: Objectron's four networks (chair, cup, camera, shoe) as one row of the tables, trained by others.

Objectron (Ahmadyan et al., CVPR 2021) finds nine keypoints of the box about an object: its centre and its corners. The networks
are those of MediaPipe, and npm's package ``@mediapipe/objectron`` (Apache-2.0) holds them. Picture and camera are MediaPipe's
(modules/objectron of github.com/google-ai-edge/mediapipe, box_landmark_gpu.pbtxt and objectron_gpu.pbtxt): a square half as
large again as the longer side of the object's box, with the border repeated where the picture ends, at 224 pixels in [0, 1].
The pose of the box is found by ``llava_pose.pose.box_keypoints``. An object of another category gets a line without a pose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import map_coordinates

from eval.systems.options import SystemOptions
from eval.systems.record_choice import require_pictures
from eval.systems.system import PREDICTIONS, run_system
from llava_pose.data.images import load_rgb
from llava_pose.data.records import ObjectRecord, Pose, Prediction, category_of
from llava_pose.errors import InputError
from llava_pose.pose.box_keypoints import pose_of_box
from llava_pose.pose.conventions import CONVENTIONS, pose_of_camera
from llava_pose.utils.command import command
from llava_pose.utils.config import check_fields, require_folder
from llava_pose.utils.distributed import from_first_process
from llava_pose.utils.files import inside
from llava_pose.utils.output_folder import own_file, require_other
from llava_pose.utils.values import Name

SYSTEM = "Objectron"
# our category -> the file of its network
MODELS = {name: f"object_detection_3d_{name}.tflite" for name in ("chair", "cup", "camera")}
MODELS["shoe"] = "object_detection_3d_sneakers.tflite"
# Centre and corners in the order of the networks' numbers, in our object frame. In Objectron's, the object faces +z with +y up,
# and its corners count with z first, then y, then x.
_CORNERS = np.array([(0, 0, 0), *((x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1))], np.float64)
KEYPOINTS = _CORNERS @ CONVENTIONS["objectron"].object_axes
_SIDE = 224  # pixels that a network sees
_ROOM = 1.5  # sides of the box that it sees
_FOCAL = 2.0975 / 2  # of MediaPipe's camera, a phone's, in widths of its picture, which the square here is taken for


@dataclass(kw_only=True)
class ObjectronOptions(SystemOptions):
    """The options of ``llava-pose objectron``."""

    models: Name = field(
        metadata={
            "help": "The folder of the four .tflite files: package/ of what npm pack @mediapipe/objectron downloads, unpacked."
        }
    )
    system: str = field(default=SYSTEM, metadata={"help": "The name in the tables."})

    def __post_init__(self) -> None:
        check_fields(self)
        self.system = self.system or SYSTEM


class Objectron:
    """Objectron's networks, each loaded when the first object of its category comes."""

    def __init__(self, options: ObjectronOptions):
        """
        Raises:
            InputError: LiteRT is not installed, or a network is missing.
        """
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "ai_edge_litert":
                raise
            raise InputError(
                "Objectron needs ai_edge_litert; install it with: pip install 'llava-pose[objectron]'"
            ) from error
        folder = require_folder(options.models, "--models", "unpack what npm pack @mediapipe/objectron downloads")
        for name in MODELS.values():
            if not (folder / name).is_file():
                raise InputError(
                    f"--models {folder}: there is no {name}; name the folder package/ of what "
                    "npm pack @mediapipe/objectron downloads, unpacked"
                )
        self.options = options
        self._interpreter = Interpreter
        self._networks: dict[str, Any] = {}

    def answer(self, records: Sequence[ObjectRecord]) -> list[Prediction]:
        """Return a prediction for each record, on the first process of a run; none of a pose of other categories.

        Raises:
            InputError: a picture cannot be read, or a file is no network of Objectron.
        """
        return from_first_process(lambda: self._answers(records))

    def _answers(self, records: Sequence[ObjectRecord]) -> list[Prediction]:
        options = self.options
        folder = Path(options.data) / options.split
        require_pictures([record for record in records if category_of(record).name in MODELS], folder)
        answers = []
        for record in records:
            pose, confidence = None, None
            if category_of(record).name in MODELS:
                picture = load_rgb(inside(folder, record.file_name))
                points, confidence = self.keypoints(picture, record.bbox, category_of(record).name)
                pose = _pose(points, record)
            answers.append(
                Prediction.of(record, system=options.system, pose=pose, pred_category=None, confidence=confidence)
            )
        return answers

    def keypoints(
        self, picture: Image.Image, bbox: tuple[float, float, float, float], category: str
    ) -> tuple[np.ndarray, float]:
        """Return the box's centre and corners (9, 2) in sides of the square that is seen, from its middle, and whether
        there is such an object, in [0, 1].

        Args:
            bbox: x1, y1, x2, y2 in the picture.
            category: one of :data:`MODELS`.

        Raises:
            InputError: the file is no network of Objectron.
        """
        network = self._networks.get(category)
        if network is None:
            network = self._networks[category] = self._load(Path(self.options.models) / MODELS[category])
        network.set_tensor(network.get_input_details()[0]["index"], _square(picture, bbox)[None])
        network.invoke()
        outputs = (network.get_tensor(output["index"]).ravel() for output in network.get_output_details())
        presence, points = sorted(outputs, key=len)
        return points.reshape(9, 2) / _SIDE - 0.5, float(presence[0])

    def _load(self, path: Path) -> Any:
        try:
            network = self._interpreter(model_path=str(path), num_threads=1)
            network.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{path}: is no TFLite file that LiteRT can run; unpack the package again") from error
        inputs, outputs = network.get_input_details(), network.get_output_details()
        shapes = [[int(size) for size in details["shape"]] for details in (*inputs, *outputs)]
        if len(inputs) != 1 or shapes[0] != [1, _SIDE, _SIDE, 3] or sorted(shapes[1:]) != [[1, 1], [1, 18]]:
            raise InputError(f"{path}: is no network of Objectron, which sees 224 pixels and gives nine keypoints")
        return network


def _square(picture: Image.Image, bbox: tuple[float, float, float, float]) -> np.ndarray:
    """Return what the network sees, (224, 224, 3) float32 in [0, 1]: bilinear, the border repeated outside of the picture."""
    x1, y1, x2, y2 = bbox
    step = _ROOM * max(x2 - x1, y2 - y1) / _SIDE
    # pixels' middles lie at whole numbers for map_coordinates, at halves in edge coordinates
    steps = (np.arange(_SIDE) + 0.5 - _SIDE / 2) * step - 0.5
    where = np.meshgrid((y1 + y2) / 2 + steps, (x1 + x2) / 2 + steps, indexing="ij")
    pixels = np.asarray(picture, np.float32) / 255
    seen = [map_coordinates(pixels[..., colour], where, order=1, mode="nearest") for colour in range(3)]
    return np.stack(seen, axis=-1)


def _pose(points: np.ndarray, record: ObjectRecord) -> Pose | None:
    """Return the pose in the prepared picture of a box with these keypoints; None of an object without extent.

    The camera looks at the middle of the square. Its distance is brought to the record's viewport, at which the object is as
    large in the picture.
    """
    x1, y1, x2, y2 = record.bbox
    side = _ROOM * max(x2 - x1, y2 - y1)
    if side <= 0 or not np.isfinite(points).all():
        return None
    rotation, translation, _ = pose_of_box(points / _FOCAL, KEYPOINTS)
    seen = pose_of_camera(rotation, translation, (_FOCAL * side, _FOCAL * side, (x1 + x2) / 2, (y1 + y2) / 2))
    known = {name: value for name, value in seen.items() if value is not None}  # all, since the camera is
    distance = known["distance"] * record.viewport * record.focal / known.pop("viewport")
    return Pose(**{**known, "distance": distance})


def run(options: ObjectronOptions) -> Path:
    """Predict a prepared split and write ``OUTPUT_DIR/predictions.jsonl``; return its path.

    Raises:
        InputError: bad data or settings.
    """
    system, out = Objectron(options), Path(options.output_dir) / PREDICTIONS
    require_other("--output-dir", [out], [Path(options.data) / options.split])
    with own_file(out, "--output-dir", "objectron"):
        return run_system(options, system)


main = command(
    ObjectronOptions,
    run,
    prog="llava-pose objectron",
    description="Predict chairs, cups, cameras and shoes of a prepared split with Objectron's networks.",
    example="llava-pose objectron --models package --data prepared --output-dir runs/objectron --categories chair cup",
)

if __name__ == "__main__":
    raise SystemExit(main())
