"""Before training: from any source of annotated images to instruction data. One file a stage, each with its command."""
