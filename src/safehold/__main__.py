"""`python -m safehold`: the same as the console script."""

from safehold.cli.main import main

main()
