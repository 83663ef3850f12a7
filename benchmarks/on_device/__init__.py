"""What benchmarks/gpu.py is made of.

No knowledge of kernels lives here: ops, structs and constants are read from csrc/include/restorelcc, and a new op
without cases is reported. (Not named gpu: a package would shadow gpu.py.)
"""
