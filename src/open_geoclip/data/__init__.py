"""Data: images with coordinates, and what is made from them."""
