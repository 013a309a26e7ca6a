"""`spotedit serve`: edits over HTTP, in the form that clients of hosted image APIs use."""
