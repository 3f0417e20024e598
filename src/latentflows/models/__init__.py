"""Models: what is made of a posterior, a prior and a likelihood."""

from latentflows.models.vae import VAE, Trace

__all__ = ["VAE", "Trace"]
