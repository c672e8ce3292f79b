"""Kinds of questions, one room a family; ``kinds.py`` names them all.

A kind asks (a scene and an object to a question and its answer) and checks: from question and answer as they are written
it finds the objects that are meant, works out the answer from their records, and says what differs. Training data
is written by the one and passed by the other.
"""
