"""What keeps the project in order: locks, the image's check, the audit and the release."""
