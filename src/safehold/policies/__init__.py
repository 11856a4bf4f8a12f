"""Rules as pure functions: (points, now) → decisions. No I/O, no clock of their own."""
