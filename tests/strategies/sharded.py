"""Models that are sharded where a strategy shards, and how they are run, in this process or in several."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def samples(count=48):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 5, generator=generator)
    return TensorDataset(x, (x.sum(1) > 0).long())


class Classifier(L.LightningModule):
    """Over two processes its layers have 4 + 3, 2 + 1 and 1 + 0 rows; over four, 2 + 2 + 2 + 1, and some have none."""

    def __init__(self, optimizer="SGD", lr=0.1, batch_size=8, scheduler=True, replicas=None):
        super().__init__()
        self.optimizer, self.lr, self.batch_size, self.scheduler = optimizer, lr, batch_size, scheduler
        self.replicas = replicas  # processes that divide the data, in turns; Lightning's sampler would shuffle it, too
        self.net = None
        self.history = []

    def configure_model(self):
        if self.net is not None:
            return
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3), nn.Linear(3, 1))
        if self.device_mesh is not None:
            self.shard()

    def shard(self):
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for layer in (self.net[0], self.net[3]):
            fully_shard(layer, mesh=mesh)
        fully_shard(self.net, mesh=mesh)

    def loss(self, batch):
        x, y = batch
        return nn.functional.binary_cross_entropy_with_logits(self.net(x.to(self.dtype)).squeeze(1).float(), y.float())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss)
        self.history.append(float(loss))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self):
        if self.optimizer is None:
            return None
        optimizer = getattr(torch.optim, self.optimizer)(self.parameters(), lr=self.lr)
        if not self.scheduler:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.7)]

    def train_dataloader(self):
        data, replicas = samples(), self.replicas
        sampler = DistributedSampler(data, replicas, self.global_rank % replicas, shuffle=False) if replicas else None
        return DataLoader(data, self.batch_size, sampler=sampler)

    def val_dataloader(self):
        return DataLoader(samples(16), 8)


def fit(strategy, arguments=None, module=None, ckpt_path=None, save=None, **options):
    """Trains in this process, which may be one of several; returns the whole weights, losses and the trainer."""
    import lightning_evo

    if isinstance(strategy, str):
        strategy = getattr(lightning_evo, strategy)(**(arguments or {}))
    module = Classifier() if module is None else module
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = L.Trainer(strategy=strategy, **{**defaults, **options})
    trainer.fit(module, ckpt_path=ckpt_path)
    if save is not None:
        trainer.save_checkpoint(save)
    return trainer, module


def gathered(value):
    if hasattr(value, "full_tensor"):
        return value.full_tensor()
    if not hasattr(value, "ds_tensor"):
        return value
    parts = [torch.empty_like(value.ds_tensor) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, value.ds_tensor)
    return torch.cat(parts)[: value.ds_numel].view(value.ds_shape)


def whole(module):
    """All weights and buffers, gathered."""
    values = {}
    for name, value in module.state_dict(keep_vars=True).items():
        values[name] = gathered(value).detach().clone()
    return values


def weights_after(*args, **options):
    """As :func:`fit`, for processes whose results travel: NumPy arrays, as bfloat16 has none, of float64."""
    trainer, module = fit(*args, **options)
    return {
        "weights": {name: value.double().numpy() for name, value in whole(module).items()},
        "history": module.history,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "summary": trainer.strategy.evolution.evaluation.summary,
    }
