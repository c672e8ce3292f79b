"""Pose classifiers on any backbone."""
