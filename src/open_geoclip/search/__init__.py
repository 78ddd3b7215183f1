"""Search: the gallery, its vectors, and answers from them."""
