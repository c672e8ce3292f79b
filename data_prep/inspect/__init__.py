"""`llava-pose inspect`: what is in any stage's output, to be looked at before a model learns it."""
