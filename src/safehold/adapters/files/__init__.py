"""Trees of files: found, read and written through directory descriptors, so that no name leads elsewhere."""
