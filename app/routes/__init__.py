"""The operations, one noun a module."""
