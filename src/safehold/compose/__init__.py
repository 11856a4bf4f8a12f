"""Puts the program together: paths, settings, credentials, stores and sources. The only importer of adapters."""
