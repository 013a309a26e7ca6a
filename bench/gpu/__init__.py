"""Visit a CUDA machine: run the parts in order and pack each one's rows as soon as they exist.

``bench/gpu.sh`` calls this package. It leaves two files in the folder OUT. ``gpu.tgz`` holds the
rows (in ``gpu/``) and the output of each part (in ``logs/``). ``summary.txt`` is also printed last.
Both are replaced atomically whenever a file of rows has changed, so a process that is killed at any
moment leaves everything that was finished. A part that fails or is stopped does not affect others.

The package uses only the standard library, because the machine may lack everything else.
"""
