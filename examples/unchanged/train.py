"""An ordinary Lightning script: a small classifier of handwritten digits."""

import argparse

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class Digits(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 10)
        )

    def training_step(self, batch, batch_idx):
        images, digits = batch
        loss = nn.functional.cross_entropy(self.network(images), digits)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_acc", self.accuracy(batch), prog_bar=True)

    def test_step(self, batch, batch_idx):
        self.log("test_acc", self.accuracy(batch))

    def accuracy(self, batch):
        images, digits = batch
        return (self.network(images).argmax(dim=1) == digits).float().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=5e-3)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.95)]


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=30)
epochs = parser.parse_args().epochs

pl.seed_everything(0)
pixels, labels = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(labels))
train, val, test = random_split(digits, [0.7, 0.15, 0.15])

checkpoint = ModelCheckpoint(monitor="val_acc", mode="max")
trainer = pl.Trainer(max_epochs=epochs, callbacks=[checkpoint], logger=False)
trainer.fit(Digits(), DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=512))
(result,) = trainer.test(ckpt_path="best", dataloaders=DataLoader(test, batch_size=512), verbose=False)
print(f"Test accuracy: {result['test_acc']:.3f}")
