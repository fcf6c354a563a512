"""Operations between the matrix products: in PyTorch, and fused for a GPU."""
