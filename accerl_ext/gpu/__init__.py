"""The kernels for GPUs, in Triton, which is imported here and nowhere else.

Each module is what the operation of the same name in `accerl_ext` does on a GPU. torch for CUDA brings Triton with it;
the machine code is made at the first call and kept by Triton. With `TRITON_INTERPRET=1`, set before Triton is imported,
the same kernels run on CPU tensors, slowly: so the tests compare them with their twins where there is no GPU.
"""
