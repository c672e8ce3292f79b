"""The systems that are compared: LLaVA-pose and every baseline."""
