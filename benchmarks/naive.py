"""The loop as a student report of 2021 would write it: the other side of every ratio in this folder.

torchvision transforms on PIL images, a DataLoader with two workers, float32, channels first, eager, and the loss
and hits of each batch brought to the host for the progress bar (reports A and B, their PyTorch framework).
"""

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from vggres.data import MEAN, STD


class Pictures(Dataset):
    """Images (N, 32, 32, 3) as torchvision's CIFAR datasets hand them out: a PIL image through a transform."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def train(net: nn.Module, images, labels, batch: int, lr: float, device: torch.device):
    """Train for ever; yields (loss, accuracy) after each batch."""
    net = net.to(device).train()
    loader = DataLoader(
        Pictures(images, labels), batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(net.parameters(), lr=lr)
    while True:
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            out = net(x)
            loss = criterion(out, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.detach().cpu().item(), (out.argmax(1) == y).float().mean().cpu().item()
