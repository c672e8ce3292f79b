"""A checkpoint for people to use: in the terminal (chat) and in the browser (demo)."""
