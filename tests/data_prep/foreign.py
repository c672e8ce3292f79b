"""Small data sets of other people's formats, made on the spot: one camera, one box, and pictures with the box drawn on them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.io import savemat

WIDTH, HEIGHT = 320, 240
FX, CX, CY = 300.0, 160.0, 120.0
SIZE = np.array([0.4, 1.0, 0.6])  # metres: left to right, front to back, height
PLACE = np.array([0.25, 0.1, 6.0])  # of its middle, in OpenCV's camera
AHEAD = np.array([0.0, 0.0, 6.0])  # in data sets whose camera looks straight at each object
EDGES = [(a, b) for a in range(8) for b in range(a + 1, 8) if bin(a ^ b).count("1") == 1]


def turn(yaw: float, tilt: float = 0.35) -> np.ndarray:
    """Left, back and up of an object (columns) in OpenCV's camera: seen from above by tilt, its front turned from us by yaw."""
    upright = np.array(
        [[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]
    )  # looks at its front: left is right, back is away, up is up
    about_up = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    c, s = math.cos(tilt), math.sin(tilt)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ upright @ about_up


def corners(yaw: float, size: np.ndarray = SIZE) -> np.ndarray:
    """(8, 3) of the box in its own frame."""
    return np.array([[(i >> 2 & 1) - 0.5, (i >> 1 & 1) - 0.5, (i & 1) - 0.5] for i in range(8)]) * size


def pixels(points: np.ndarray, yaw: float, place: np.ndarray = PLACE) -> np.ndarray:
    """Pixels of points of the object, by OpenCV's formula."""
    seen = points @ turn(yaw).T + place
    return FX * seen[:, :2] / seen[:, 2:] + [CX, CY]


def bbox(yaw: float, place: np.ndarray = PLACE) -> list[float]:
    seen = pixels(corners(yaw), yaw, place)
    return [*seen.min(0).tolist(), *seen.max(0).tolist()]


def draw(path: Path, yaw: float, place: np.ndarray = PLACE) -> Path:
    """A picture of the box, its front filled yellow."""
    image = Image.new("RGB", (WIDTH, HEIGHT), (70, 90, 110))
    seen = [tuple(p) for p in pixels(corners(yaw), yaw, place).tolist()]
    pen = ImageDraw.Draw(image)
    front = [i for i in range(8) if not i >> 1 & 1]
    pen.polygon([seen[i] for i in (front[0], front[1], front[3], front[2])], fill=(230, 190, 60))
    for a, b in EDGES:
        pen.line([seen[a], seen[b]], fill=(255, 255, 255), width=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95)
    return path


YAWS = (0.3, 1.2, 2.9)


def make_coco(root: Path, *, unit: str = "degrees", header: str = "annotation_id,azimuth,elevation,theta") -> None:
    """instances.json, angles.csv and pictures. An azimuth is minus the yaw, the elevation the tilt."""
    images, annotations, lines = [], [], [header]
    for index, yaw in enumerate(YAWS):
        draw(root / "photos" / f"p{index}.jpg", yaw, AHEAD)
        images.append({"id": index, "file_name": f"p{index}.jpg", "width": WIDTH, "height": HEIGHT})
        x1, y1, x2, y2 = bbox(yaw, AHEAD)
        box = [x1, y1, x2 - x1, y2 - y1]
        annotations.append({"id": 10 + index, "image_id": index, "category_id": 3, "bbox": box, "iscrowd": 0})
        angles = np.array([-yaw % (2 * math.pi), 0.35, 0.0])
        lines.append(",".join(map(repr, [10 + index, *(np.degrees(angles) if unit == "degrees" else angles).tolist()])))
    data = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "car"}]}
    (root / "instances.json").write_text(json.dumps(data))
    (root / "angles.csv").write_text("\n".join(lines) + "\n")


def viewpoint(yaw: float, **changes: Any) -> dict[str, Any]:
    """PASCAL3D+'s fields of the box, in its own units: degrees, and distances in diagonals of the box."""
    px, py = pixels(np.zeros((1, 3)), yaw, AHEAD)[0].tolist()
    view = {
        "azimuth": math.degrees(-yaw % (2 * math.pi)),
        "elevation": math.degrees(0.35),
        "theta": 0.0,
        "distance": float(np.linalg.norm(AHEAD) / np.linalg.norm(SIZE)),
        "focal": 1.0,
        "px": px,
        "py": py,
        "viewport": FX,
    }
    return {name: value for name, value in {**view, **changes}.items() if value is not None}


def write_record(path: Path, filename: str, objects: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    things = np.empty(len(objects), dtype=object)
    things[:] = objects
    savemat(path, {"record": {"filename": filename, "objects": things}}, do_compression=True)


def thing(yaw: float, **changes: Any) -> dict[str, Any]:
    known = {
        "class": "car",
        "bbox": np.array(bbox(yaw, AHEAD)),
        "cad_index": 2,
        "truncated": 0,
        "occluded": 0,
        "difficult": 0,
    }
    return {**known, "viewpoint": viewpoint(yaw), **changes}


def make_pascal3d(root: Path) -> None:
    for index, yaw in enumerate(YAWS):
        name = f"n0{index}"
        draw(root / "Images" / "car_imagenet" / f"{name}.JPEG", yaw, AHEAD)
        write_record(root / "Annotations" / "car_imagenet" / f"{name}.mat", f"{name}.JPEG", [thing(yaw)])
    (root / "Image_sets").mkdir()
    (root / "Image_sets" / "car_imagenet_train.txt").write_text("n00\nn01\n")
    (root / "Image_sets" / "car_imagenet_val.txt").write_text("n02\n")


def make_objectnet3d(root: Path) -> None:
    for index, yaw in enumerate(YAWS):
        draw(root / "Images" / f"n0{index}.JPEG", yaw, AHEAD)
        write_record(root / "Annotations" / f"n0{index}.mat", f"n0{index}.JPEG", [thing(yaw), thing(yaw)])
    (root / "Image_sets").mkdir()
    (root / "Image_sets" / "train.txt").write_text("n00\nn01\n")
    (root / "Image_sets" / "test.txt").write_text("n02\n")


def make_bop(root: Path) -> None:
    size = dict(zip(("size_x", "size_y", "size_z"), (SIZE * 1000).tolist(), strict=True))
    (root / "models").mkdir(parents=True)
    (root / "models" / "models_info.json").write_text(json.dumps({"5": {"diameter": 1233.0, **size}}))
    for folder, yaws in (("train_pbr", YAWS[:2]), ("test", YAWS[2:])):
        scene = root / folder / "000001"
        truth, cameras, infos = {}, {}, {}
        for index, yaw in enumerate(yaws):
            draw(scene / "rgb" / f"{index:06d}.png", yaw)
            x1, y1, x2, y2 = bbox(yaw)
            rotation, place = turn(yaw).ravel().tolist(), (PLACE * 1000).tolist()
            truth[str(index)] = [{"obj_id": 5, "cam_R_m2c": rotation, "cam_t_m2c": place}]
            cameras[str(index)] = {"cam_K": [FX, 0, CX, 0, FX, CY, 0, 0, 1], "depth_scale": 1.0}
            infos[str(index)] = [{"bbox_obj": [x1, y1, x2 - x1, y2 - y1], "visib_fract": 0.6}]
        for name, value in (("scene_gt", truth), ("scene_camera", cameras), ("scene_gt_info", infos)):
            (scene / f"{name}.json").write_text(json.dumps(value))


def make_omni3d(root: Path) -> None:
    """Its object frame: x to the front, y down, z to the object's left."""
    images, annotations = [], []
    for index, yaw in enumerate(YAWS):
        draw(root / "pictures" / "scene" / f"p{index}.jpg", yaw)
        k = [[FX, 0, CX], [0, FX, CY], [0, 0, 1]]
        name = f"scene/p{index}.jpg"
        images.append({"id": index, "width": WIDTH, "height": HEIGHT, "file_path": name, "K": k, "src_90_rotate": 0})
        left, back, up = turn(yaw).T
        box = {"R_cam": np.stack([-back, -up, left], 1).tolist(), "center_cam": PLACE.tolist(), "valid3D": True}
        known = {"bbox2D_tight": [-1] * 4, "bbox2D_proj": bbox(yaw), "visibility": -1, "truncation": 0.1}
        dimensions = [SIZE[0], SIZE[2], SIZE[1]]  # width (z), height (y), length (x)
        annotations.append(
            {"id": 7 + index, "image_id": index, "category_name": "car", "dimensions": dimensions, **box, **known}
        )
    data = {"info": {}, "images": images, "categories": [], "annotations": annotations}
    (root / "omni.json").write_text(json.dumps(data))


def make_opencv(root: Path) -> None:
    """Matrices of OpenCV's camera, as ``llava-pose convert`` reads them; the object frame is ours."""
    lines = []
    for index, yaw in enumerate(YAWS):
        name = draw(root / "pictures" / f"p{index}.jpg", yaw).name
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = turn(yaw), PLACE
        line = {"file_name": name, "category": "car", "matrix": matrix.tolist(), "size": SIZE.tolist()}
        lines.append(json.dumps({**line, "intrinsics": [FX, FX, CX, CY]}) + "\n")
    (root / "poses.jsonl").write_text("".join(lines))


def make_objectron(root: Path) -> None:
    """Frames stand upright; the sensor's x runs down in them, and its y to the right. The world is turned about, too."""
    angle = 0.4
    world = np.array([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    shift = np.array([0.3, -0.2, 1.0])
    to_sensor = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]])  # OpenCV's right, down, forward -> y, x, -z
    frames = []
    for index, yaw in enumerate(YAWS[:1] * 3):
        draw(root / "frames" / "car_1" / f"frame_{index:05d}.png", yaw)
        view = np.eye(4)
        view[:3, :3], view[:3, 3] = world, shift
        projection = np.zeros((4, 4))
        projection[0, 0], projection[1, 1] = 2 * FX / HEIGHT, 2 * FX / WIDTH
        projection[1, 2], projection[0, 2] = 1 - 2 * CX / WIDTH, 1 - 2 * CY / HEIGHT
        projection[3, 2] = -1
        camera = {"viewMatrix": view.ravel().tolist(), "projectionMatrix": projection.ravel().tolist()}
        frame: dict[str, Any] = {"annotations": [{"objectId": 1}], "camera": camera}
        frames.append({**frame, "frameId": index} if index else frame)  # protobuf leaves a 0 out
    left, back, up = turn(YAWS[0]).T
    in_camera = to_sensor @ np.stack([left, up, -back], 1)  # its x is left, y up, z the front
    rotation, translation = world.T @ in_camera, world.T @ (to_sensor @ PLACE - shift)
    thing = {"id": 1, "category": "car", "type": "BOUNDING_BOX", "rotation": rotation.ravel().tolist()}
    scale = [SIZE[0], SIZE[2], SIZE[1]]
    data = {"objects": [{**thing, "translation": translation.tolist(), "scale": scale}], "frameAnnotations": frames}
    (root / "car_1.json").write_text(json.dumps(data))
