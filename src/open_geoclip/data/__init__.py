"""Data: pictures with coordinates, and what is made from them."""
