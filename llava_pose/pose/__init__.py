"""Pose geometry, metrics, the taxonomy of categories and meshes on disk: numpy alone."""
