"""Rendered training data in ImageNet3D's raw layout: shapes, a ray caster, scenes and the stage that writes them.

``mesh``, ``skins`` and ``primitives`` hold shapes and their colours. ``sources`` says what a source of meshes is:
``parametric`` draws objects from a seed, ``mesh_folder`` and ``sweethome3d`` read files through ``mesh_files``; ``plan``
puts them together. ``raycast`` and ``scene`` make one image, ``poses``, ``sampling``, ``materials``, ``surroundings`` and
``backgrounds`` draw what varies between images, ``studio`` takes one image after another of an object, ``options`` and
``generate`` are the stage (``llava-pose render``).
"""
