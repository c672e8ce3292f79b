"""Captions of whole pictures, by a grammar or by a served model."""
