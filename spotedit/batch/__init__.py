"""Edit many pictures: find them, edit those that are not finished, and keep a record of each."""
