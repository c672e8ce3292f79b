"""From raw images and annotations to crops and records."""
