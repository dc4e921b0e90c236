"""From a plan to kernels: the printer of Triton text, the kernels, their cache on disk, and their launch.

Only this package imports triton, and only `launch`, `offline` and the generated modules do.
"""
