"""Where places are on the Earth: geometry, areas, and names of places."""
