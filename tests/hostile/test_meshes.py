"""Mesh files that declare more than they hold: a sentence, before memory is asked for."""

from __future__ import annotations

import json
import logging
import struct
from pathlib import Path
from typing import Any

import pytest

from data_prep.render import mesh_files
from data_prep.render.mesh_files import MeshError, read_mesh
from tests.hostile.data_commands import time_limit

pytest.importorskip("trimesh")


def glb(binary: bytes = b"", **values: Any) -> bytes:
    """A GLB of one mesh, whose header is changed by the values."""
    header = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"componentType": 5126, "count": 3, "type": "VEC3"}],
        **values,
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    if binary:
        chunks += struct.pack("<II", len(binary), 0x004E4942) + binary
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


def declared(count: Any) -> bytes:
    return glb(accessors=[{"componentType": 5126, "count": count, "type": "VEC3"}])


def placed(times: int) -> bytes:
    """Of 90,000 vertices, so many times."""
    count = 90_000
    view = {"buffer": 0, "byteOffset": 0, "byteLength": 12 * count}
    return glb(
        bytes(12 * count),
        scenes=[{"nodes": list(range(times))}],
        nodes=[{"mesh": 0}] * times,
        accessors=[{"componentType": 5126, "count": count, "type": "VEC3", "bufferView": 0}],
        bufferViews=[view],
        buffers=[{"byteLength": 12 * count}],
    )


FILES = {
    "300_million_zeros.glb": declared(3 * 10**8),
    "zeros_beyond_any_memory.glb": declared(10**13),
    "a_count_in_words.glb": declared("many"),
    "no_count.glb": glb(accessors=[{}]),
    "accessors_of_text.glb": glb(accessors="abc"),
    "placed_a_thousand_times.glb": placed(1000),
    "within_itself.glb": glb(nodes=[{"mesh": 0, "children": [0]}]),
    "cut_off.glb": glb()[:30],
    "a_header_of_a_list.glb": b"glTF" + struct.pack("<IIII", 2, 24, 4, 0x4E4F534A) + b"[ ] ",
    "nested.glb": b"glTF" + struct.pack("<IIII", 2, 100_020, 100_000, 0x4E4F534A) + b"[" * 100_000,
    "many.ply": b"ply\nformat binary_little_endian 1.0\nelement vertex 9999999999\nproperty float x\nend_header\n",
    "many.off": b"OFF\n9999999999 9999999999 0\n0 0 0\n",
    "far.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 99999999999999999999\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_mesh_of_more_than_it_holds_is_a_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    with time_limit(20), pytest.raises(MeshError, match=rf"^{name}: [^\n]+$"):
        read_mesh(path, name=name, file_type=path.suffix[1:])


COUNT = 100_000
VIEW = {
    "accessors": [{"componentType": 5126, "count": COUNT, "type": "VEC3", "bufferView": 0}],
    "bufferViews": [{"buffer": 0, "byteOffset": 0, "byteLength": 12 * COUNT}],
    "buffers": [{"byteLength": 12 * COUNT}],
}
PRIMITIVE = {"attributes": {"POSITION": 0}}
MUCH = {
    "one_array_in_many_primitives.glb": lambda: glb(
        bytes(12 * COUNT), meshes=[{"primitives": [PRIMITIVE] * 3000}], **VIEW
    ),
    "one_array_in_many_meshes.glb": lambda: glb(bytes(12 * COUNT), meshes=[{"primitives": [PRIMITIVE]}] * 3000, **VIEW),
    "a_chain_of_nodes.glb": lambda: glb(
        bytes(36),
        nodes=[*({"children": [n + 1], "mesh": 0} for n in range(20_000)), {"mesh": 0}],
        accessors=[{"componentType": 5126, "count": 3, "type": "VEC3", "bufferView": 0}],
        bufferViews=[{"buffer": 0, "byteOffset": 0, "byteLength": 36}],
        buffers=[{"byteLength": 36}],
    ),
    "many_materials.obj": lambda: (
        b"v 0 0 0\nv 1 0 0\nv 0 1 0\n" + b"".join(b"usemtl m%d\nf 1 2 3\n" % number for number in range(60_000))
    ),
}


@pytest.mark.parametrize("name", MUCH)
def test_a_small_mesh_that_asks_for_much_is_a_sentence(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setattr(mesh_files, "_BYTES", 200 << 20)
    monkeypatch.setattr(mesh_files, "_BYTES_A_BYTE", 1)
    monkeypatch.setattr(mesh_files, "_SECONDS", 2)
    path = tmp_path / name
    path.write_bytes(MUCH[name]())
    with time_limit(60), pytest.raises(MeshError, match=rf"^{name}: [^\n]+$"):
        read_mesh(path, name=name, file_type=path.suffix[1:])


def test_a_texture_that_leads_elsewhere_is_no_traceback(tmp_path: Path, caplog) -> None:
    text = "ply\nformat ascii 1.0\ncomment TextureFile ../../etc/passwd\nelement vertex 3\n"
    text += "".join(f"property float {axis}\n" for axis in "xyz") + "element face 1\n"
    text += "property list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    path = tmp_path / "a.ply"
    path.write_text(text)
    with caplog.at_level(logging.DEBUG):
        mesh = mesh_files._read(mesh_files.require_trimesh(), path, "a.ply", "ply", None)
    assert len(mesh.faces) == 1
    assert "Traceback" not in caplog.text
