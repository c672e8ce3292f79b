"""What every command needs of the machine: files, folders that it owns, and text for a terminal."""
