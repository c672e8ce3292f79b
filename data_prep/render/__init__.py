"""Rendered training data in ImageNet3D's raw layout: shapes, a ray caster, scenes and the stage that writes them.

``mesh`` and ``primitives`` hold shapes, ``parametric`` draws objects from a seed, ``sources`` says which meshes a data set
consists of, ``raycast`` and ``scene`` make one image, ``sampling`` and ``backgrounds`` draw what varies between images,
``generate`` is the stage (``llava-pose render``).
"""
