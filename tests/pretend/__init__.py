"""A pretended GPU: a CPU shows a GPU's mistakes.

`device.cpp` registers a CUDA device whose memory is main memory with a torch that was built without CUDA; `card.py`
makes `torch.cuda` and NCCL believe in it; `build.py` compiles it. `PRETEND_GPU=1 pytest …` runs tests on it in this
process; `tests/helpers/gpu.py` starts ranks and other programs on it.
"""
