"""What an image's bytes are, decided from the bytes alone."""
