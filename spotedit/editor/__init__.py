"""Load a pipeline and edit people's pictures with it: what every program of the package shares."""
