"""Pretrained timm backbones: features by level, weights, and faster inference and fine-tuning."""
