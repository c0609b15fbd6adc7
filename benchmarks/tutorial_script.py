"""The steps of examples/mnist.py, written as in tutorials, for benchmarks/tutorial.py.

python benchmarks/tutorial_script.py DATA_FOLDER OUTPUT_FOLDER EPOCHS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST


class Net(nn.Module):
    """The 784-500-10 network with ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 500)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits of flattened images."""
        out: torch.Tensor = self.fc2(self.relu(self.fc1(x)))
        return out


def train(
    model: nn.Module, loader: DataLoader[object], optimizer: torch.optim.Optimizer, epochs: int
) -> None:
    """Run a standard training loop."""
    criterion = nn.CrossEntropyLoss()
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            loss = criterion(model(images.reshape(-1, 28 * 28)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy(model: nn.Module, loader: DataLoader[object]) -> float:
    """Return the fraction of images that the model classifies correctly."""
    model.eval()
    right = total = 0
    with torch.no_grad():
        for images, labels in loader:
            right += (model(images.reshape(-1, 28 * 28)).argmax(1) == labels).sum().item()
            total += len(labels)
    return right / total


def main(data: str, output: Path, epochs: int) -> None:
    """Train, save, load, fine-tune and export."""
    torch.manual_seed(0)
    to_tensor = transforms.ToTensor()
    train_set = MNIST(data, train=True, transform=to_tensor)
    test_set = MNIST(data, train=False, transform=to_tensor)
    train_loader = DataLoader(train_set, batch_size=100, shuffle=True)
    test_loader = DataLoader(test_set, batch_size=100)

    model = Net()
    train(model, train_loader, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), epochs)
    print(f"trained: {accuracy(model, test_loader):.4f}")
    torch.save(model.state_dict(), output / "model.pth")

    model = Net()
    model.load_state_dict(torch.load(output / "model.pth", weights_only=True))
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.fc2 = nn.Linear(500, 10)
    train(model, train_loader, torch.optim.SGD(model.fc2.parameters(), 0.005, 0.9), epochs)
    print(f"fine-tuned: {accuracy(model, test_loader):.4f}")

    model.eval()
    torch.onnx.export(model, (torch.rand(1, 784),), output / "model.onnx", dynamo=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
