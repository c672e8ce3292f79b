"""ImageNet3D's layouts on disk, read without running what they carry."""
