"""A checkpoint as an object to ask."""
