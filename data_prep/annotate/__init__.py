"""`llava-pose annotate`: a web page to label photographs, whose output is the raw layout."""
