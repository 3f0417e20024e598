"""pythae: `VAE` and `VAE_IAF`, trained by its own `TrainingPipeline`."""

import tempfile

import torch
from pythae.models import VAE, VAE_IAF, VAE_IAF_Config, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.pipelines import TrainingPipeline
from pythae.trainers import BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn

from benchmarks.peers.problem import Outcome, Problem, decoder, encoder, timed


class Encoder(BaseEncoder):
    """The shared encoder network behind pythae's interface."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_variance = self.network(x).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """The shared decoder network behind pythae's interface, which wants probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


class LastLoss(TrainingCallback):
    """Keeps the training loss that pythae logs at the end of each epoch."""

    value: float

    def on_log(self, training_config: BaseTrainerConfig, logs: dict, **kwargs: object) -> None:
        self.value = logs["train_epoch_loss"]


def vae(problem: Problem, encoder_network: nn.Module, decoder_network: nn.Module) -> VAE:
    """The `VAE` of pythae around given networks."""
    config = VAEConfig(input_dim=(problem.data_dim,), latent_dim=problem.latent, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(encoder_network), decoder=Decoder(decoder_network))


def train_vae(problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
    """`VAE`: diagonal Gaussian posterior, N(0, I) prior, closed-form KL."""
    torch.manual_seed(seed)
    return _train(vae(problem, encoder(problem), decoder(problem)), problem, data, epochs, seed)


def train_iaf(problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
    """`VAE_IAF`: the posterior goes through an IAF whose parameters do not depend on x."""
    torch.manual_seed(seed)
    depth, width = len(problem.iaf.widths), problem.iaf.widths[0]
    config = VAE_IAF_Config(
        input_dim=(problem.data_dim,),
        latent_dim=problem.latent,
        reconstruction_loss="bce",
        n_made_blocks=problem.iaf.num,
        n_hidden_in_made=depth,
        hidden_size=width,
    )
    model = VAE_IAF(config, encoder=Encoder(encoder(problem)), decoder=Decoder(decoder(problem)))
    return _train(model, problem, data, epochs, seed)


def _train(model: VAE, problem: Problem, data: Tensor, epochs: int, seed: int) -> Outcome:
    last_loss = LastLoss()
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=epochs,
            learning_rate=problem.learning_rate,
            per_device_train_batch_size=problem.batch_size,
            seed=seed,
            no_cuda=True,
        )
        pipeline = TrainingPipeline(model, config)

        def train() -> float:
            pipeline(train_data=data, callbacks=[last_loss])
            return last_loss.value

        return timed(train, model)
