"""What scores look like: tables of text, plots, sheets of pictures."""
