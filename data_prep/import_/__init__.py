"""Other people's data sets to ImageNet3D's raw layout. One file a data set, and one writer for all of them."""
