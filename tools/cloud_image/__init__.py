"""Builds an ordinary Debian with cloud-init as a disk for servers, from Debian packages: docs/concepts/cloud-image.md tells of it.

Standard library only, like `tools.guest_image`, from which it takes the kernel, the boot loader and the disk.
"""
