"""Reports show scores: tables of text, plots, sheets of pictures."""
