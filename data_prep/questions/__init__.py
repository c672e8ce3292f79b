"""Kinds of questions, one file a family; ``kinds.py`` names them all.

A kind turns a scene and an object into a question and its answer, both from the records. That every answer follows from the
records, in the mirror as well, is shown over made-up pictures by tests/data_prep/questions, which read each question back.
"""
