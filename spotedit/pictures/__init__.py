"""Read, check and draw pictures, and write files atomically."""
