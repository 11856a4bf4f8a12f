"""What makes a Linux file system or application quiet: freezing, unmounting, mounting read-only, hooks."""
