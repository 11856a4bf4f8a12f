"""The seams: what an object store, a disk and a source must do. Protocols only."""
