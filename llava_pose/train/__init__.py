"""Fine-tuning: arguments, what trains, the trainer, its checkpoints and the cache of a frozen tower's features."""
