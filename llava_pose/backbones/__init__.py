"""What a LLaVA-pose is assembled from, and how an adapter is merged into its base."""
