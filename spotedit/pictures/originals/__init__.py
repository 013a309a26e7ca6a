"""Write an edit into a copy of the user's file, format by format."""
