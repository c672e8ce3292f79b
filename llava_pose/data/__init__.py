"""Records, conversations and pictures, and how they become training samples."""
