"""A small CLIP of its own for the embedded model: images and sentences in one space.

Frozen image features and frozen sentence embeddings are each projected by one linear layer into a shared space, and a
view is asked to find its caption and a caption its view (Radford et al., "Learning Transferable Visual Models From
Natural Language Supervision", ICML 2021, section 2.3). The projections are frozen then, and GeoCLIP is trained on top:
its head reads the shared part and the image's own features. A sentence has no such features; that the head may
know inputs without them, they are left out now and then in training, and what is shared comes from the image
or from its caption.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16, Int64
from torch import Tensor, nn

from open_geoclip.errors import SettingsError
from open_geoclip.model.image_encoder import ImageEncoder, ImageSettings

__all__ = ["AlignSettings", "AlignedEncoder", "Projections", "align", "caption_loss"]


@dataclass(frozen=True)
class AlignSettings:
    """Settings of the alignment.

    Attributes:
        width: of the shared space.
        epochs: passes over the images.
        batch_size: images a step.
        learning_rate: of AdamW at its start; it falls as a cosine to nothing.
        weight_decay: of AdamW.
        max_scale: bound of the temperature's inverse.
        seed: of everything that is drawn.

    Raises:
        SettingsError: a setting is out of range.
    """

    width: int = 256
    epochs: int = 5
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    max_scale: float = 50.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "epochs", "batch_size", "learning_rate", "max_scale"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name}: above 0, not {getattr(self, name)}")


class Projections(nn.Module):
    """Image features and sentence embeddings into one space, to length 1.

    Args:
        features: of some thousands of images, for their mean and deviation.
        sentence_size: length of a sentence vector.
        width: of the shared space.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: Float[Tensor, "n d"], sentence_size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", features.float().mean(dim=0))
        self.register_buffer("std", features.float().std(dim=0) + 1e-3)
        self.image = nn.Linear(features.shape[1], width)
        self.text = nn.Linear(sentence_size, width)

    def standardised(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Features of mean 0 and deviation 1."""
        return (features.float() - self.mean) / self.std

    def of_images(self, standardised: Float[Tensor, "n d"]) -> Float[Tensor, "n w"]:
        """Images in the shared space."""
        return F.normalize(self.image(standardised), dim=1)

    def of_texts(self, sentences: Float[Tensor, "n s"]) -> Float[Tensor, "n w"]:
        """Sentences in the shared space."""
        return F.normalize(self.text(sentences.float()), dim=1)

    @torch.no_grad()
    def image_weights(self) -> tuple[Float[Tensor, "w d"], Float[Tensor, " w"]]:
        """Weight and bias of the image's projection for features as they are: mean and deviation go into them."""
        weight = self.image.weight / self.std
        return weight, self.image.bias - weight @ self.mean


def caption_loss(
    images: Float[Tensor, "n w"], texts: Float[Tensor, "n w"], scale: Float[Tensor, ""], same: Int64[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Cross-entropy of images over captions and of captions over images, halved.

    Args:
        images: images, of length 1.
        texts: their captions, of length 1.
        scale: what cosines are multiplied with.
        same: a number for each caption: equal ones are not held against each other.
    """
    logits = scale * images @ texts.T
    double = same[:, None] == same[None, :]
    double.fill_diagonal_(False)
    logits = logits.masked_fill(double, -torch.inf)
    rows = torch.arange(len(images))
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2


def align(
    projections: Projections,
    features: Float16[Tensor, "n d"],
    sentences: Float16[Tensor, "m s"],
    captions: Int64[Tensor, "n k"],
    settings: AlignSettings,
    report: Callable[[dict[str, float]], None],
) -> None:
    """Train the projections in place, and freeze them.

    Args:
        projections: see :class:`Projections`.
        features: of n images.
        sentences: embeddings of m different captions.
        captions: rows of the k captions of each image; one of them is drawn at each step.
        settings: see :class:`AlignSettings`.
        report: called with each epoch's figures.
    """
    scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    optimizer = torch.optim.AdamW(
        [*projections.parameters(), scale], lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    n, size = len(features), min(settings.batch_size, len(features))
    steps = n // size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * steps)
    generator = torch.Generator().manual_seed(settings.seed)
    for epoch in range(settings.epochs):
        total = 0.0
        for rows in torch.randperm(n, generator=generator)[: steps * size].split(size):
            drawn = torch.randint(captions.shape[1], (size,), generator=generator)
            chosen = captions[rows, drawn]
            loss = caption_loss(
                projections.of_images(projections.standardised(features[rows])),
                projections.of_texts(sentences[chosen]),
                scale.exp(),
                chosen,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                scale.clamp_(max=math.log(settings.max_scale))
            total += loss.item()
        report({"epoch": epoch + 1, "caption_loss": total / steps, "scale": scale.exp().item()})
    projections.requires_grad_(False)


class AlignedEncoder(ImageEncoder):
    """An image encoder whose head reads what is shared with sentences and the image's own features.

    It is trained on rows of image features followed by a caption's embedding.

    Args:
        widths: of the head; the first is that of the shared space and of the features together.
        projections: frozen.
        without: share of the rows that are trained without the image's own features; half of these take what is shared
            from the caption.
    """

    def __init__(self, widths: Sequence[int], projections: Projections, without: float = 0.25) -> None:
        super().__init__(None, None, ImageSettings("earth", tuple(widths), projections.image.out_features))
        self.projection = None  # in training it is one of the projections
        self.projections = projections.requires_grad_(False)
        self.without = without

    def forward_head(self, rows: Float[Tensor, "n d_and_s"]) -> Float[Tensor, "n k"]:
        """Return embeddings of images; in training some are of captions. In evaluation, captions may be missing."""
        d = self.projections.image.in_features
        own = self.projections.standardised(rows[:, :d])
        shared = self.projections.of_images(own)
        if self.training and self.without > 0:
            drawn = torch.rand(len(rows), 1)
            shared = torch.where(drawn < self.without / 2, self.projections.of_texts(rows[:, d:]), shared)
            own = own.masked_fill(drawn < self.without, 0.0)
        return self.mlp(torch.cat([_SHARED_GAIN * shared, own], dim=1))

    def of_texts(self, sentences: Float[Tensor, "n s"]) -> Float[Tensor, "n k"]:
        """Return embeddings of sentences."""
        shared = self.projections.of_texts(sentences)
        own = shared.new_zeros(len(shared), self.projections.image.in_features)
        return self.mlp(torch.cat([_SHARED_GAIN * shared, own], dim=1))

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The weights of a release: gain, mean and deviation go into the linear layers around them."""
        weight, bias = self.projections.image_weights()
        tensors = {
            "image_encoder.projection.weight": weight,
            "image_encoder.projection.bias": bias,
            "text_encoder.projection.weight": self.projections.text.weight,
            "text_encoder.projection.bias": self.projections.text.bias,
            "text_encoder.picture": self.projections.mean,
        }
        for name, tensor in self.mlp.state_dict().items():
            tensors[f"image_encoder.mlp.{name}"] = tensor.clone()
        width = self.projections.image.out_features
        first = tensors["image_encoder.mlp.0.weight"]
        first[:, :width] *= _SHARED_GAIN
        first[:, width:] /= self.projections.std
        tensors["image_encoder.mlp.0.bias"] -= first[:, width:] @ self.projections.mean
        return tensors

    @classmethod
    @torch.no_grad()
    def unfolded(cls, tensors: Mapping[str, Tensor], features: Float[Tensor, "n d"]) -> "AlignedEncoder":
        """Return the encoder of a release, to continue training: the inverse of :meth:`folded`.

        Args:
            tensors: of the release, by name.
            features: of some thousands of images, for their deviation; the mean is the release's.
        """
        saved = {name: tensor.float() for name, tensor in tensors.items()}
        weight, text = saved["image_encoder.projection.weight"], saved["text_encoder.projection.weight"]
        projections = Projections(features, text.shape[1], len(weight))
        projections.mean.copy_(saved["text_encoder.picture"])
        mean, std = projections.mean, projections.std
        projections.image.weight.copy_(weight * std)
        projections.image.bias.copy_(saved["image_encoder.projection.bias"] + weight @ mean)
        projections.text.weight.copy_(text)
        projections.text.bias.copy_(saved["text_encoder.projection.bias"])
        start = "image_encoder.mlp."
        mlp = {name.removeprefix(start): tensor.clone() for name, tensor in saved.items() if name.startswith(start)}
        first, width = mlp["0.weight"], len(weight)
        mlp["0.bias"] += first[:, width:] @ mean
        first[:, width:] *= std
        first[:, :width] /= _SHARED_GAIN
        linear = [name for name in mlp if name.endswith(".weight")]
        encoder = cls((first.shape[1], *(len(mlp[name]) for name in sorted(linear))), projections)
        encoder.mlp.load_state_dict(mlp)
        return encoder


_SHARED_GAIN = 16.0
"""A unit vector of 256 numbers has deviation 1/16; the image's own features have deviation 1."""
