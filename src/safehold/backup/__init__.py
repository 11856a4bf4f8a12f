"""From a capture to a point."""
