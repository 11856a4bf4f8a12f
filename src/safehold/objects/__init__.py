"""Object stores, and the stores around stores that retry and limit."""
