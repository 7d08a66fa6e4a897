"""A classifier of handwritten digits whose fitness is accuracy itself: no gradient, no backward pass.

Many members get the same number of images right; among these the cross-entropy decides. It never outweighs one image.
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evo import Fitness

Batch = tuple[Tensor, Tensor]


class DigitsClassifier(LightningModule):
    """A small multi-layer perceptron.

    Args:
        hidden: Width of the hidden layer.
        learning_rate: AdamW's learning rate at the start; it falls to zero along a cosine.
        weight_decay: AdamW's weight decay. It keeps the weights of a size at which perturbations change predictions;
            without it some digit may never be predicted again, and accuracy alone no longer says how to get it back.
    """

    def __init__(self, hidden: int = 64, learning_rate: float = 0.03, weight_decay: float = 0.1) -> None:
        super().__init__()
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.network = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def fitness_step(self, batch: Batch, batch_idx: int) -> Fitness:
        """What evolution maximises: right or wrong, for each image; among equals, the smaller loss is better."""
        images, digits = batch
        scores = self(images)
        right = scores.gather(1, digits[:, None])[:, 0] == scores.amax(dim=1)  # argmax takes four times as long
        return Fitness(right, tie_breaker=-nn.functional.cross_entropy(scores, digits))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Run once per generation, for the logs. Evolution does not look at this loss."""
        images, digits = batch
        scores = self(images)
        self.log("train_acc", accuracy(scores, digits), prog_bar=True)
        return nn.functional.cross_entropy(scores, digits)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, digits = batch
        self.log("val_acc", accuracy(self(images), digits), prog_bar=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=self.weight_decay
        )
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Digits(LightningDataModule):
    """1,797 images of 8 x 8 pixels, bundled with scikit-learn: 1,437 to train on, 360 held out.

    Args:
        batch_size: Images that a generation sees.
        split_seed: Which images are held out.
    """

    def __init__(self, batch_size: int = 256, split_seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        images, digits = load_digits(return_X_y=True)
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(split_seed))
        data = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(digits)[order]
        self.train = TensorDataset(*(part[:1437] for part in data))
        self.held_out = TensorDataset(*(part[1437:] for part in data))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.held_out, batch_size=len(self.held_out))


def accuracy(scores: Tensor, digits: Tensor) -> Tensor:
    return (scores.argmax(dim=1) == digits).float().mean()
