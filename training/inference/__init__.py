"""Trained networks answering for images: opened, fed and described."""
