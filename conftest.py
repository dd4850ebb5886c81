"""Without Triton, which not every platform has, doctests cannot be collected from the files that import it."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("triton") else ["ebmhybrid/kernels/fused.py", "ebmhybrid/kernels/fused_linear.py"]
