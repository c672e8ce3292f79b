"""Preparation makes crops and records of raw images and annotations."""
