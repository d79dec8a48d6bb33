"""Training of class-conditional denoisers, and of noise-trained classifiers, on a user's images."""

from diffcert_ray.tools.training.classifier import train_classifier
from diffcert_ray.tools.training.denoiser import denoising_loss, train_denoiser
from diffcert_ray.tools.training.loop import Standing, Trained

__all__ = ["Standing", "Trained", "denoising_loss", "train_classifier", "train_denoiser"]
