"""Disks as files and devices: raw images, block devices, qcow2; as sources and as restore targets."""
