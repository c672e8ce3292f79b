"""Neural mesh models: NMM-Sphere and NOVUM."""
