"""What Safehold reads and writes besides vaults. The packages below are independent of each other."""
