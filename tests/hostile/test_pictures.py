"""Pictures that are none, or of rare kinds: no program is started, nothing hangs, and the others are done."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from data_prep.prepare.command import PrepareConfig, prepare
from data_prep.render.backgrounds import photo_background
from data_prep.render.mesh_files import MeshError, read_mesh
from eval.systems.record_images import MirroredRecords
from llava_pose.data.dataset import PoseDataset
from llava_pose.data.images import check_picture, load_rgb, sent_picture
from llava_pose.data.jsonl import read_jsonl
from llava_pose.data.records import read_records
from llava_pose.errors import InputError
from tests.conftest import REPOSITORY
from tests.hostile.data_commands import COMMANDS, device, fifo, picture, prepared_with, record, sparse, time_limit
from tests.llava_pose.small_models import small_processor

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
0 0 64 64 rectfill
showpage
%%EOF
"""


PLAIN = Image.new("RGB", (64, 64), (10, 200, 30))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says so many pixels in a few hundred bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def avif_without(box: bytes) -> bytes:
    """An AVIF with nothing in one of its boxes but zeros."""
    whole = saved(PLAIN, "AVIF")
    at = whole.index(box)
    end = at - 4 + int.from_bytes(whole[at - 4 : at], "big")
    return whole[: at + 4] + bytes(end - at - 4) + whole[end:]


def jpeg_of_many_scans() -> bytes:
    """A progressive JPEG whose last scan comes again and again: 65 KB for each 14 seconds of a decoder."""
    whole = saved(Image.new("L", (4000, 4000), 128), "JPEG", progressive=True, quality=30)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 1000 + whole[-2:]


def written(content: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return make


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


NO_PICTURES: dict[str, Callable[[Path], Path]] = {
    "eps": written(EPS),
    "pdf": written(saved(PLAIN, "PDF")),
    "icns": written(b"icns\x00\x00\x00\x10ic07\x00\x00\x00\x08"),
    "xpm": written(b'/* XPM */\nstatic char * a[] = {\n"1 1 1 1",\n". c #FFFFFF",\n"."};\n'),
    "psd": written(b"8BPS\x00\x01" + bytes(40)),
    "text": written(b"no picture"),
    "empty": written(b""),
    "one_byte": written(b"\xff"),
    "170_million_pixels": written(png_of_size(13000, 13000)),
    "360_million_pixels": written(png_of_size(60000, 60000)),
    "jpeg_of_many_scans": written(jpeg_of_many_scans()),
    **({"avif_of_nothing": written(avif_without(b"iinf"))} if features.check("avif") else {}),
    "fifo": fifo,
    "device": device,
    "sparse": sparse,
    "folder": folder,
}
PICTURES: dict[str, bytes] = {
    "png": saved(PLAIN, "PNG"),
    "webp": saved(PLAIN, "WEBP"),
    "tiff": saved(PLAIN, "TIFF"),
    "bmp": saved(PLAIN, "BMP"),
    "ppm": saved(PLAIN, "PPM"),
    "gif_animated": saved(PLAIN, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    "webp_animated": saved(PLAIN, "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    "png_animated": saved(PLAIN, "PNG", save_all=True, append_images=[Image.new("RGB", (64, 64))]),
    "16_bit": saved(Image.fromarray(np.full((64, 64), 40000, dtype=np.uint16)), "PNG"),
    "palette": saved(PLAIN.convert("P"), "PNG"),
    "transparent": saved(PLAIN.convert("RGBA"), "PNG"),
    "progressive": saved(PLAIN, "JPEG", progressive=True),
    "cmyk": saved(PLAIN.convert("CMYK"), "JPEG"),
}


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program under Ghostscript's name; the file is there once it has been started."""
    mark, program = tmp_path / "was_started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # which Pillow remembers
    return mark


@pytest.fixture
def hostile(request: pytest.FixtureRequest, tmp_path: Path, ghostscript: Path) -> Path:
    """A prepared folder whose third object's picture is none."""
    prepared = prepared_with(tmp_path / "prepared", record(2))
    NO_PICTURES[request.param](prepared / "val/car/n2_00.JPEG")
    return prepared


every_kind = pytest.mark.parametrize("hostile", NO_PICTURES, indirect=True)


@every_kind
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_the_others(
    hostile: Path, tmp_path: Path, ghostscript: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = COMMANDS[command].run(hostile, tmp_path / "out")
    assert code == COMMANDS[command].code
    assert COMMANDS[command].done(tmp_path / "out")
    assert not ghostscript.exists()
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if code == 2:
        assert "n2_00.JPEG" in said.err.splitlines()[-1]


@every_kind
def test_training_names_it_before_the_first_step(hostile: Path, ghostscript: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A car."}]
    samples = [
        {"id": f"s{number}", "image": f"val/car/n{number}_00.JPEG", "conversations": turns, "poses": []}
        for number in range(3)
    ]
    with time_limit(20), pytest.raises(InputError, match=r"sample 's2': .*n2_00"):
        PoseDataset(samples, hostile, small_processor())
    with time_limit(20), pytest.raises(InputError, match="n2_00"):
        MirroredRecords(read_records(hostile, "val"), hostile / "val", None, [])
    assert not ghostscript.exists()


@every_kind
def test_nothing_is_read_or_sent(hostile: Path, ghostscript: Path) -> None:
    path = hostile / "val/car/n2_00.JPEG"
    rng = np.random.default_rng(0)
    for read in (load_rgb, sent_picture, lambda path: photo_background(path, 8, 8, rng)):
        with time_limit(20), pytest.raises(InputError, match="n2_00"):
            read(path)
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_prepare_lists_it_and_does_the_others(raw_dataset: Any, tmp_path: Path, ghostscript: Path, kind: str) -> None:
    raw_dataset.add("good")
    raw_dataset.add("hostile", image=b"", objects=[raw_dataset.object(64, 64)])
    NO_PICTURES[kind](raw_dataset.root / "images/car/hostile.JPEG")
    with time_limit(60):
        out = prepare(PrepareConfig(str(raw_dataset.root), str(tmp_path / "out"), splits="train", size=64, workers=1))
        assert COMMANDS["inspect-page"].run(raw_dataset.root, tmp_path / "page") == 0
        assert COMMANDS["inspect"].run(raw_dataset.root, tmp_path / "page") == 0
    assert [record.id for record in read_records(out, "train")] == ["car/good/0"]
    (reject,) = (value for _, value in read_jsonl(out / "rejects.jsonl"))
    assert reject["file"] == "images/car/hostile.JPEG"
    assert not ghostscript.exists()


@pytest.mark.parametrize("content", PICTURES.values(), ids=PICTURES)
def test_rare_pictures_are_taken(raw_dataset: Any, tmp_path: Path, content: bytes) -> None:
    raw_dataset.add("n0", image=content, objects=[raw_dataset.object(64, 64)])
    out = prepare(
        PrepareConfig(str(raw_dataset.root), str(tmp_path / "out"), splits="train", crop="whole", size=64, workers=1)
    )
    (made,) = read_records(out, "train")
    with Image.open(out / "train" / made.file_name) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
    path = tmp_path / "n0"
    path.write_bytes(content)
    assert load_rgb(path).mode == "RGB"
    assert check_picture(tmp_path, "n0")[0] == path
    sent, kind = sent_picture(path)
    assert kind in ("image/jpeg", "image/png", "image/webp")
    with Image.open(io.BytesIO(sent)) as image:
        assert f"image/{image.format.lower()}" == kind


@pytest.mark.parametrize(
    "size", [(40000, 20), (20, 40000), (1, 1), (60000, 1000)], ids=lambda size: "{}x{}".format(*size)
)
@pytest.mark.parametrize("crop", ["pose", "box", "whole"])
def test_a_picture_of_an_odd_shape_is_prepared_or_listed(
    raw_dataset: Any, tmp_path: Path, size: tuple[int, int], crop: str
) -> None:
    import resource

    raw_dataset.add("odd", image=Image.new("RGB", size), objects=[raw_dataset.object(*size)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = PrepareConfig(str(raw_dataset.root), str(tmp_path / "out"), splits="train", crop=crop, size=64, workers=1)
    with suppress(InputError):
        prepare(config)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 600 << 10, "KiB"


# Textures


def mesh_with(path: Path, texture: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "mtllib m.mtl\nusemtl a\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvt 1 0\nvt 0 1\n"
        "f 1/1 2/2 3/3\nf 1/1 2/2 4/3\n"
    )
    (path.parent / "m.mtl").write_text(f"newmtl a\nKd 1 1 1\nmap_Kd {texture}\n")
    return path


def is_without_texture(path: Path) -> bool:
    """Whether the mesh is read without the texture, or refused by name."""
    try:
        return read_mesh(path, name=str(path), file_type=path.suffix[1:]).skin is None
    except MeshError as error:
        return str(path) in str(error)


@pytest.mark.parametrize("kind", NO_PICTURES)
def test_a_texture_that_is_no_picture_is_left_out_or_said(tmp_path: Path, ghostscript: Path, kind: str) -> None:
    pytest.importorskip("trimesh")
    path = mesh_with(tmp_path / "meshes/car/a.obj", "texture.png")
    NO_PICTURES[kind](path.parent / "texture.png")
    with time_limit(30):
        assert is_without_texture(path)
    assert not ghostscript.exists()


@pytest.mark.parametrize("name", ["../../secret.png", "{root}/secret.png", "..\\..\\secret.png", "link.png"])
def test_a_texture_comes_from_the_folder_of_its_mesh(tmp_path: Path, name: str) -> None:
    pytest.importorskip("trimesh")
    PLAIN.save(tmp_path / "secret.png")
    path = mesh_with(tmp_path / "meshes/car/a.obj", name.replace("{root}", str(tmp_path)))
    (path.parent / "link.png").symlink_to(tmp_path / "secret.png")
    assert is_without_texture(path)


@pytest.mark.parametrize("kind", ["eps", "170_million_pixels"])
def test_a_texture_inside_a_glb(tmp_path: Path, ghostscript: Path, kind: str) -> None:
    trimesh = pytest.importorskip("trimesh")
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=PLAIN)
    box = trimesh.creation.box()
    box.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
    good = box.export(file_type="glb")
    image = good[good.index(b"\x89PNG") : good.index(b"IEND") + 8]
    content = NO_PICTURES[kind](tmp_path / "texture").read_bytes()[: len(image)].ljust(len(image), b"\n")
    path = tmp_path / "a.glb"
    path.write_bytes(good.replace(image, content))
    assert is_without_texture(path)
    assert not ghostscript.exists()


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.parametrize("box", ["meta", "iloc", "iinf", "ispe", "av1C", "mdat"])
def test_a_damaged_avif_is_a_sentence(tmp_path: Path, box: str) -> None:
    path = written(avif_without(box.encode()))(tmp_path / "a.avif")
    with pytest.raises(InputError, match=r"a\.avif: cannot read the picture \("):
        load_rgb(path)


def test_a_picture_that_is_sent_is_as_it_was(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.JPEG")
    assert sent_picture(path) == (path.read_bytes(), "image/jpeg")


def test_the_decoder_takes_no_module_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "PIL.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 6)).save(picture)
    program = (
        f"import sys\nsys.path[0] = {str(REPOSITORY)!r}\nfrom llava_pose.serve.decoding import decode_apart\n"
        "with open('picture.png', 'rb') as file:\n    sys.stdout.write(str(decode_apart(file, 'a').size))\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout == "(8, 6)", ended.stderr
    assert not (tmp_path / "ran").exists()
