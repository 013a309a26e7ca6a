"""The options that a caller can choose. Every other part of the package may import them."""
