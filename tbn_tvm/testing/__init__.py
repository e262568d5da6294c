"""Run GPU kernels where there is no GPU, to test them.

``cuda_emulator`` runs the CUDA C++ that TVM emits on the CPU, ``opencl`` runs the OpenCL C that
it emits on any OpenCL device. Both run the host code that TVM made: grids, branches on symbolic
shapes and sequences of launches are what they would be on the GPU.
"""
