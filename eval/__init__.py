"""After training: from a checkpoint, or from any other system's answers, to scores and tables."""
