"""Conversations made of records, and files of conversations checked."""
