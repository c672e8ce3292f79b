"""The systems that LLaVA-pose is compared with, one file a family. Each writes the prediction lines of docs/EVALUATION.md."""
