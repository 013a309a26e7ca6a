"""Visit a CUDA machine: run the parts in order and pack each one's rows as soon as they exist.

``bench/gpu.sh`` calls this. Two files come back in the folder OUT: ``gpu.tgz`` with the rows (in
``gpu/``) and each part's output (in ``logs/``), and ``summary.txt``, which is also printed last.
Both are replaced whole whenever a row file has changed, so that a process killed at any moment
leaves all that was finished. Parts that fail or are stopped cost the others nothing.

Only the standard library is used: the machine may lack everything else.
"""
