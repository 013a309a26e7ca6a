"""Quality on held-out scenes whose truth is known: spot, its variants and rivals, against dense."""
