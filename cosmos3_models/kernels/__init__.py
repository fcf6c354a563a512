"""The operations between the matrix products.

``token_ops``, ``pixel_ops`` and ``fp8_ops`` define each operation in PyTorch. Where ``dispatch`` finds that the tensors
allow it, an operation runs as the kernel of the same name in ``token_kernels``, ``pixel_kernels`` or ``fp8_kernels``,
which reads every input once.
"""
