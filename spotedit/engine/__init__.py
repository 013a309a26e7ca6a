"""What happens while an enabled pipeline runs. Only `patch` changes a pipeline."""
