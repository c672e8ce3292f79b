"""One picture with all its objects, and what is true of them."""
