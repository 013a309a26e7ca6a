"""Compare dense and spot edits: on benchmarks, on your own pictures, and for a calibration."""
