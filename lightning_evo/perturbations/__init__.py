"""How noise is laid over a tensor. One kind of perturbation per file."""
