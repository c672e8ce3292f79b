"""The report's tasks: systems trained, predicted and compared from one YAML."""
