"""The fused operations, one page each: a definition on Tensors, and per device a kernel pair on arrays. See `minigrad/op.py`; the model page is
`layer_norm.py`.

`minigrad/functional.py` lists them all under PyTorch's names.
"""
