"""The tools of every command: files, folders that it owns, options, and text for a terminal."""
