"""A checkpoint's folder: configs, tensor names, files, loading."""
