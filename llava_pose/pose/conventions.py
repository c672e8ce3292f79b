"""Poses in the conventions of other programs: where their axes point, which way round numbers stand, and their units.

A :class:`Convention` is an entry of a table: the axes of the object frame that the front and the top face, the axes of the
camera frame that it looks along and that are up in the picture, the handedness of both, the order of a quaternion, and the
unit of length. Everything follows from these: :meth:`Convention.from_opencv` and :meth:`Convention.to_opencv` lead through
OpenCV's camera and our object frame (docs/POSE.md), so that no pair of conventions needs code of its own.

Rotations are active and map coordinates of the object to coordinates of the camera, ``x_camera = R @ x_object + t``, whichever
frames these are. The pixel of a point in OpenCV's camera (x right, y down, z forward) is ``fx x/z + cx, fy y/z + cy``; pixels
are edge coordinates.

**A camera that looks straight at the object, and one that does not.** A pose of ours has no room for a sideways translation:
its camera looks along z at the object's origin, and px, py say where in the picture that is. Written with the intrinsics
(M f, M f, px, py) it is exact. A real camera has one principal point for all objects. :func:`pose_of_camera` turns such a
camera about its centre until it looks at the origin, which is the rotation that a crop of the object shows (the *allocentric*
one of Kundu et al., 3D-RCNN, CVPR 2018), and :func:`camera_of_pose` turns it back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_pose.pose.geometry import OpenCVCamera, angles_from_rotation, canonicalize, rotation_matrix

_OPENCV = np.diag([1.0, -1.0, -1.0])  # our camera (y up, looking along -z) to OpenCV's (y down, looking along z)
_AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


@dataclass(frozen=True)
class Convention:
    """A convention of axes: that of a program, a data set or a file format.

    Attributes:
        title: what people call it.
        front, up: the axes of the object frame that the object's front and its top face, such as "-y".
        forward, camera_up: the axes of the camera frame that it looks along, and that is up in the picture.
        right_handed: of both frames. In a left-handed one left and right follow from the other two the other way round.
        unit: metres to a unit of length.
        quaternion: the order in which its quaternions are written.
        size_order: the order in which the extents along the object's axes are written.
        has_front: whether the front is part of the convention; without, it is an agreement of this table (see ``note``).
        note: what else there is to know, a sentence or two.
        source: where it is written down.
    """

    title: str
    front: str
    up: str
    forward: str
    camera_up: str
    right_handed: bool = True
    unit: float = 1.0
    quaternion: str = "xyzw"
    size_order: str = "xyz"
    has_front: bool = True
    note: str = ""
    source: str = ""

    @property
    def object_axes(self) -> np.ndarray:
        """(3, 3): our coordinates of a point of the object to this convention's. Its columns are left, back and up."""
        front, up = _axis(self.front), _axis(self.up)
        left = np.cross(up, front) * (1 if self.right_handed else -1)
        return np.stack([left, -front, up], axis=1)

    @property
    def camera_axes(self) -> np.ndarray:
        """(3, 3): OpenCV's coordinates of a point before the camera to this convention's: right, down and forward."""
        forward, up = _axis(self.forward), _axis(self.camera_up)
        right = np.cross(forward, up) * (1 if self.right_handed else -1)
        return np.stack([right, -up, forward], axis=1)

    def from_opencv(self, rotation: Any, translation: Any) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (..., 3, 3) and translation (..., 3), from our object frame and OpenCV's camera, in metres."""
        turned = self.camera_axes @ np.asarray(rotation, np.float64) @ self.object_axes.T
        return turned, np.asarray(translation, np.float64) @ self.camera_axes.T / self.unit

    def to_opencv(self, rotation: Any, translation: Any) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of :meth:`from_opencv`: to our object frame and OpenCV's camera, in metres."""
        turned = self.camera_axes.T @ np.asarray(rotation, np.float64) @ self.object_axes
        return turned, np.asarray(translation, np.float64) @ self.camera_axes * self.unit

    def size_from_ours(self, size: Any) -> np.ndarray:
        """Extents (..., 3) in metres along our object axes (left to right, front to back, height), as this one writes them."""
        own = np.asarray(size, np.float64) @ np.abs(self.object_axes).T / self.unit
        return own[..., ["xyz".index(axis) for axis in self.size_order]]

    def size_to_ours(self, size: Any) -> np.ndarray:
        """The inverse of :meth:`size_from_ours`."""
        own = np.asarray(size, np.float64)[..., [self.size_order.index(axis) for axis in "xyz"]]
        return own @ np.abs(self.object_axes) * self.unit


def _axis(name: str) -> np.ndarray:
    return np.array(_AXES[name[-1]]) * (-1 if name.startswith("-") else 1)


CONVENTIONS: dict[str, Convention] = {
    "llava-pose": Convention(
        "LLaVA-pose",
        front="-y",
        up="z",
        forward="-z",
        camera_up="y",
        note="The convention of PASCAL3D+ and ImageNet3D, which writes three angles and a distance.",
        source="docs/POSE.md",
    ),
    "opencv": Convention(
        "OpenCV",
        front="-y",
        up="z",
        forward="z",
        camera_up="-y",
        quaternion="wxyz",
        note="OpenCV fixes the camera only; the object frame is ours.",
        source="docs.opencv.org, calib3d: pinhole camera model",
    ),
    "opengl": Convention(
        "OpenGL",
        front="-y",
        up="z",
        forward="-z",
        camera_up="y",
        quaternion="wxyz",
        note="The matrix is the modelview matrix. OpenGL fixes the camera only; the object frame is ours.",
        source="OpenGL 2.1 specification, 2.11 (eye coordinates)",
    ),
    "blender": Convention(
        "Blender",
        front="-y",
        up="z",
        forward="-z",
        camera_up="y",
        quaternion="wxyz",
        note="camera.matrix_world @ matrix is the object's matrix_world. View > Front looks along +y, at a front facing -y.",
        source="Blender manual, Editors > 3D Viewport > Navigation > Viewpoint; mathutils.Quaternion (w, x, y, z)",
    ),
    "unity": Convention(
        "Unity",
        front="z",
        up="y",
        forward="z",
        camera_up="y",
        right_handed=False,
        note="localPosition and localRotation of the object as a child of the camera.",
        source="Unity manual, Rotation and orientation in Unity; Transform.forward is +z",
    ),
    "threejs": Convention(
        "three.js, glTF",
        front="z",
        up="y",
        forward="-z",
        camera_up="y",
        note="Position and quaternion of the object as a child of the camera.",
        source="glTF 2.0 specification, 3.4 (+Y up, the front of an asset faces +Z) and 3.10 (a camera looks along -Z)",
    ),
    "ros": Convention(
        "ROS",
        front="x",
        up="z",
        forward="z",
        camera_up="-y",
        note="vision_msgs/Detection3DArray in an optical frame.",
        source="REP 103 (x forward, y left, z up; optical frames z forward, x right, y down); vision_msgs/msg, e77fa2d",
    ),
    "bop": Convention(
        "BOP",
        front="-y",
        up="z",
        forward="z",
        camera_up="-y",
        unit=0.001,
        has_front=False,
        note="BOP fixes +z up for models that stand and millimetres, but no front; the front is ours.",
        source="github.com/thodan/bop_toolkit, docs/bop_datasets_format.md and inout.save_bop_results, cea62d6",
    ),
    "omni3d": Convention(
        "Omni3D",
        front="x",
        up="-y",
        forward="z",
        camera_up="-y",
        size_order="zyx",
        has_front=False,
        note="Boxes of driving scenes head along +x as KITTI's do; of indoor scenes, whether a box has a front is its source's "
        "matter. dimensions are width (z), height (y), length (x).",
        source="github.com/facebookresearch/omni3d, DATA.md and cubercnn/util/math_util.py get_cuboid_verts_faces, 778bd02",
    ),
    "objectron": Convention(
        "Objectron",
        front="z",
        up="y",
        forward="-z",
        camera_up="-x",
        note="Cameras are those of the landscape sensor, pictures stand upright: +y is right in the picture, and +x down.",
        source="github.com/google-research-datasets/Objectron, objectron/dataset/box.py FACES, 46daaa0; issues 39 and 52",
    ),
    "qwen3-vl": Convention(
        "Qwen3-VL",
        front="x",
        up="-y",
        forward="z",
        camera_up="-y",
        has_front=False,
        note="bbox_3d is x, y, z, x_size, y_size, z_size, pitch, yaw, roll, the angles in half turns; a box has no front.",
        source="github.com/QwenLM/Qwen3-VL, cookbooks/3d_grounding.ipynb (its code), 9658872; issues 2015 and 2044",
    ),
    "colmap": Convention(
        "COLMAP",
        front="-y",
        up="z",
        forward="z",
        camera_up="-y",
        quaternion="wxyz",
        note="The world of images.txt is the object's frame: one image line an object.",
        source="colmap.github.io/format.html, images.txt (Hamilton quaternion and translation, world to camera)",
    ),
}


# The numbers of single formats


def qwen_rotation(angles: Any) -> np.ndarray:
    """The rotation (..., 3, 3) of the last three numbers (..., 3) of Qwen3-VL's ``bbox_3d``.

    The text and the prompts of the Qwen3-VL cookbook (cookbooks/3d_grounding.ipynb of QwenLM/Qwen3-VL, at 9658872) call them
    roll, pitch, yaw, in radians. Its code, which draws the boxes, takes them for pitch, yaw, roll, multiplies them by 180
    degrees, and turns a box about x by pitch, then about y by yaw, then about z by roll: ``Rz(roll) Ry(yaw) Rx(pitch)``. So
    does this. Issue 2044 there asks about the contradiction.
    """
    pitch, yaw, roll = np.moveaxis(np.asarray(angles, dtype=np.float64) * math.pi, -1, 0)
    sp, cp, sy, cy, sr, cr = np.sin(pitch), np.cos(pitch), np.sin(yaw), np.cos(yaw), np.sin(roll), np.cos(roll)
    rows = [
        [cr * cy, cr * sy * sp - sr * cp, cr * sy * cp + sr * sp],
        [sr * cy, sr * sy * sp + cr * cp, sr * sy * cp - cr * sp],
        [-sy, cy * sp, cy * cp],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def qwen_angles(rotation: Any) -> np.ndarray:
    """The inverse of :func:`qwen_rotation`: pitch, yaw, roll (..., 3) in half turns; where yaw is 90 degrees, roll is 0."""
    r = np.asarray(rotation, dtype=np.float64)
    level = np.hypot(r[..., 0, 0], r[..., 1, 0])
    locked = level < 1e-9
    yaw = np.arctan2(-r[..., 2, 0], level)
    pitch = np.where(locked, np.arctan2(-r[..., 1, 2], r[..., 1, 1]), np.arctan2(r[..., 2, 1], r[..., 2, 2]))
    roll = np.where(locked, 0.0, np.arctan2(r[..., 1, 0], r[..., 0, 0]))
    return np.stack([pitch, yaw, roll], -1) / math.pi


def pose_from_orient_anything(azimuth: Any, polar: Any, rotation: Any) -> tuple[Any, Any, Any]:
    """Azimuth, elevation and theta (radians, canonical ranges) of Orient Anything's angles in degrees, of any shape (...).

    Orient Anything (Wang et al., ICML 2025, arXiv 2412.18605; github.com/SpatialVision/Orient-Anything) says azimuth, polar and
    rotation in degrees, and a confidence. Its ``utils.get_proj2D_XYZ(phi, theta, gamma)``, which its app calls with minus the
    rotation as gamma, draws the object's front, right and top into the picture (x right, y up); at rotation 0

        front = (-sin phi, -cos phi sin theta)    right = (-cos phi, sin phi sin theta)    top = (0, cos theta)

    and a positive rotation turns all three counter-clockwise, as ``render_3D_axis`` turns its picture by PIL's ``rotate``.
    Ours, with R of docs/POSE.md at theta 0, are minus R's second, minus its first, and its third column:

        front = (-sin a, -sin e cos a)            right = (-cos a, sin e sin a)            top = (0, cos e)

    so that azimuth, elevation and theta are azimuth, polar and rotation, with neither an offset nor a sign between them.
    Version 2 (github.com/SpatialVision/Orient-Anything-V2) turns an object with front +x and top +z before a camera on +x by
    ``Rx(rotation) Ry(elevation) Rz(-azimuth)``, which is the same rotation again. The tests hold both forms against
    ``geometry.rotation_matrix``. Both see the object from a camera that looks at its middle, as our poses are defined. An angle
    that is not finite stays so.
    """
    return canonicalize(*(np.radians(angle) for angle in (azimuth, polar, rotation)))


def orient_anything_from_pose(azimuth: Any, elevation: Any, theta: Any) -> tuple[Any, Any, Any]:
    """The inverse of :func:`pose_from_orient_anything`: azimuth, polar and rotation in degrees."""
    return tuple(np.degrees(angle) for angle in canonicalize(azimuth, elevation, theta))  # type: ignore[return-value]


# Cameras


def camera_of_pose(
    *, azimuth: float, elevation: float, theta: float, distance: float, px: float, py: float, intrinsics: Any
) -> OpenCVCamera:
    """The pose as rotation, translation and K before a camera with given intrinsics.

    With the principal point (px, py) and the focal length viewport · focal it is :func:`geometry.opencv_camera`, and every
    point falls on the same pixel. With those of a real camera the origin still falls on (px, py), at the same distance from
    the camera's centre, and the rotation is seen in the direction of that pixel.

    Args:
        intrinsics: fx, fy, cx, cy in pixels.
    """
    fx, fy, cx, cy = (float(number) for number in intrinsics)
    ray = np.array([(px - cx) / fx, (py - cy) / fy, 1.0])
    ray /= np.linalg.norm(ray)
    rotation = _towards_z(ray).T @ _OPENCV @ rotation_matrix(azimuth, elevation, theta)
    return OpenCVCamera(rotation, distance * ray, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]))


def pose_of_camera(rotation: Any, translation: Any, intrinsics: Any | None) -> dict[str, float | None]:
    """The six numbers of a pose, and its viewport, from a rotation and a translation in OpenCV's camera: the inverse of
    :func:`camera_of_pose`.

    The viewport is what the picture is magnified by at that place: fx of a camera that looks straight at the object, and
    ``f / cos^1.5`` for one that sees it at an angle, since a plane picture stretches what lies to the side.

    Args:
        rotation, translation: of the object, (3, 3) and (3,).
        intrinsics: fx, fy, cx, cy in pixels; None if they are unknown, and px, py and viewport then are None too.

    Raises:
        ValueError: the object is not in front of the camera.
    """
    t = np.asarray(translation, dtype=np.float64)
    distance = float(np.linalg.norm(t))
    if not t[2] > 0 or not math.isfinite(distance):
        raise ValueError("the object is not in front of the camera")
    azimuth, elevation, theta = angles_from_rotation(_OPENCV @ _towards_z(t / distance) @ np.asarray(rotation))
    pose: dict[str, float | None] = {
        **{"azimuth": float(azimuth), "elevation": float(elevation), "theta": float(theta), "distance": distance},
        **{"px": None, "py": None, "viewport": None},
    }
    if intrinsics is not None:
        fx, fy, cx, cy = (float(number) for number in intrinsics)
        pose["px"], pose["py"] = fx * t[0] / t[2] + cx, fy * t[1] / t[2] + cy
        pose["viewport"] = math.sqrt(fx * fy) * (distance / t[2]) ** 1.5
    return pose


def _towards_z(direction: np.ndarray) -> np.ndarray:
    """The smallest turn (3, 3) that brings a unit vector with z > 0 to (0, 0, 1)."""
    x, y, z = direction
    share = 1 / (1 + z)
    return np.array([[1 - share * x * x, -share * x * y, -x], [-share * x * y, 1 - share * y * y, -y], [x, y, z]])


# Boxes


def box_orientations(which: str = "upright") -> np.ndarray:
    """The turns S (n, 3, 3) of our object frame that bring a box's axes onto its axes.

    Args:
        which: "upright" for the 4 about up, "all" for all 24.
    """
    turns = []
    for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2)):
        for signs in np.ndindex(2, 2, 2):
            turn = np.eye(3)[list(order)] * (1 - 2 * np.array(signs))[:, None]
            if np.linalg.det(turn) > 0 and (which == "all" or turn[2, 2] > 0):
                turns.append(turn)
    return np.stack(turns)


def box_corners(size: Any) -> np.ndarray:
    """The corners (8, 3) in our object frame of a box of that size (left to right, front to back, height) about its middle."""
    signs = np.array(list(np.ndindex(2, 2, 2))) - 0.5
    return signs * np.asarray(size, dtype=np.float64)
