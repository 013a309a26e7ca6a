"""Dense against spot editing on published benchmarks and on pictures of one's own."""
