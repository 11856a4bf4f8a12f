"""From a point back to bytes: restore, compare, prove."""
