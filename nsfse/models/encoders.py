"""Images and texts to unit rows of one dimension: what NSFSE and the baselines share."""

from torch import Tensor, nn

from nsfse.config import ModelConfig
from nsfse.models.backbones.base import TrunkEncoder
from nsfse.models.backbones.registry import get_backbone


class Encoders(nn.Module):
    """The two encoders of a backbone. A method derives from it and may change what is made of an image."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.image_encoder, self.text_encoder = get_backbone(config.backbone).build(config, vocabulary)

    @property
    def trunk_encoder(self) -> TrunkEncoder:
        """Return the image encoder as a trunk and a projection. Raises TypeError for a backbone without a trunk."""
        if not isinstance(self.image_encoder, TrunkEncoder):
            raise TypeError(f"the {self.config.backbone} backbone has no trunk")
        return self.image_encoder

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            pixels: uint8 [B, H, W, 3], already fitted to `config.image_size`.

        Returns:
            Unit vectors [B, d] and unit regions [B, R, d]; R is 0 for a method that compares whole images alone.
        """
        vectors, regions = self.image_encoder(pixels.permute(0, 3, 1, 2).float() / 255.0)
        return self._image_outputs(vectors, regions)

    def encode_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images whose features the frozen stages of the trunk have computed before.

        Args:
            features: What they made of each image, as `pretrained.feature_extractor` makes it.

        Returns:
            As `encode_images`.
        """
        return self._image_outputs(*self.trunk_encoder.encode_features(features.float()))

    def _image_outputs(self, vectors: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the method makes of the image encoder's outputs [B, d] and [B, R, d]."""
        return vectors, regions

    def encode_text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts.

        Args:
            ids: Word ids [B, L].
            mask: True [B, L] where there is a word.

        Returns:
            Unit words [B, L, d], 0 where there is none, and unit sentences [B, d].
        """
        words, sentence = self.text_encoder(ids, mask)
        return words, sentence
