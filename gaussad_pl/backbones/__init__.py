"""Pretrained timm backbones: features by level, weights, and faster inference and fine-tuning."""

from gaussad_pl.backbones.quick_timm import without_compiler_and_wandb

with without_compiler_and_wandb():
    import timm  # noqa: F401  # here: before all modules that import parts of it
