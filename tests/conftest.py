import torch

# Tests run side by side; one thread each also makes every sum the same in every process.
torch.set_num_threads(1)
