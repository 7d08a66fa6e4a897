"""Functions with known optima, and pictures of how searches go about them."""
