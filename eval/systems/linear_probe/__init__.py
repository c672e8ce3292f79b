"""Linear probes of frozen backbones."""
