"""The backbones of LLaVA-pose: assembling and probing a base, and merging an adapter into it."""
