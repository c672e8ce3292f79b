"""From records to conversations."""
