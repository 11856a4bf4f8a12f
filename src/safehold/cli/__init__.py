"""The command line: parses, calls one use-case, prints. `main` loads a verb's module only when that verb is used."""
