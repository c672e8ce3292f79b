"""The names of the representations of rotations in llava_pose.model.rotation, for options: no torch is needed for them."""

ROTATION_NAMES = ("svd9d", "rot6d", "bins", "bins+residual", "matrix-fisher", "laplace-mixture")
DEFAULT_ROTATION = "bins+residual"
