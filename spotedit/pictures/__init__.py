"""Pictures and other files: reading, checking, drawing, and writing them whole or not at all."""
