"""Files of posed objects in the formats of other programs, read into one type and written from it."""
