"""From the bytes of a raw image to the JPEG that is stored."""
