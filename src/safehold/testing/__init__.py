"""Conformance suites, real servers and fault injectors for tests. Nothing that is shipped imports it."""
