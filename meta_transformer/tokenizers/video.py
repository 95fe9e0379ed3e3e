"""Video to tokens: one linear projection of each tubelet, a patch over some frames, plus positions in space and time.

Arrives: `pixel_values_videos` `(batch, frames, channels, height, width)`; for clips of different length
`padding_mask_videos` `(batch, frames)`, and for frames of different size `pixel_mask_videos` `(batch, height, width)`.
Leaves: `(batch, times * rows * columns, hidden)`, time by time and each time row by row, with a mask if there was one.

ViViT (Arnab et al. 2021, section 3.2, "Tubelet embedding"), with tubelets of 2 frames as VideoMAE (Tong et al. 2022).
Different from both: any length, height and width. A tubelet is read as a patch of a picture that has the channels of
all its frames, so that everything spatial is done by the image tokenizer's code. Positions are the sum of a resampled
table of places and an interpolated table of times, which is less than one entry for each tubelet and fits clips of any
shape. The table of places is the video's own, also beside images: it starts from that of a pretrained image model, and
training moves each to what its modality needs.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor

from ..sequence import GridLayout, TokenSequence
from .base import ModalityTokenizer, TokenizerConfig
from .image import ImageTokenizer, ImageTokenizerConfig
from .padding import first_places, read_mask
from .positions import InterpolatedPositions

__all__ = ["VideoTokenizer", "VideoTokenizerConfig"]


@strict
@dataclass(kw_only=True)
class VideoTokenizerConfig(ImageTokenizerConfig):
    """Options of the video tokenizer: those of the image tokenizer, which hold for each frame, and those of time.

    Attributes:
        tubelet_size: Frames of a tubelet; 1 makes the tokens of each frame.
        max_time_positions: Times with a position of their own, of `tubelet_size` frames each. Clips with more times
            interpolate them.
    """

    tubelet_size: int = 2
    max_time_positions: int = 16

    def validate_times(self) -> None:
        for name in ("tubelet_size", "max_time_positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def picture_config(self, frames: int) -> ImageTokenizerConfig:
        """The image tokenizer's options for `frames` frames as one picture, their channels one after the other."""
        return ImageTokenizerConfig(
            num_channels=frames * self.num_channels,
            patch_size=self.patch_size,
            image_size=self.image_size,
            patch_bias=self.patch_bias,
            patch_embedding=self.patch_embedding,
            stem_depth=self.stem_depth,
        )


class VideoTokenizer(ModalityTokenizer):
    """Tubelet projection with learned positions of place and time; see the module's description."""

    config_class: ClassVar[type[TokenizerConfig]] = VideoTokenizerConfig

    config: VideoTokenizerConfig

    def __init__(self, config: VideoTokenizerConfig, hidden_size: int) -> None:
        super().__init__(config, hidden_size)
        self.tubelet_size = config.tubelet_size
        self.tubelets = ImageTokenizer(config.picture_config(config.tubelet_size), hidden_size)
        self.time_positions = InterpolatedPositions(config.max_time_positions, hidden_size)

    @classmethod
    def inherit_image_weights(cls, weights: dict[str, Tensor], source: Any, target: Any) -> dict[str, Tensor]:
        """All of them: the patches' for the central frame of a tubelet, zero for its others (ViViT, equation 9).

        So a tubelet of equal frames gives the token of the image, and any other that of one sharp frame, where the
        mean over frames (equation 8) would show the pretrained trunk a blurred one. Positions of time start at zero, as
        an image has none. Channels, sizes of patches and places are adapted as the image tokenizer does; like that one,
        a convolutional stem takes over nothing.
        """
        inherited = ImageTokenizer.inherit_image_weights(weights, source, target.picture_config(1))
        if not inherited:
            return {}
        patches = inherited["projection.weight"]
        tubelets = patches.new_zeros(len(patches), target.tubelet_size, *patches.shape[1:])
        tubelets[:, target.tubelet_size // 2] = patches
        inherited["projection.weight"] = tubelets.flatten(1, 2)
        times = patches.new_zeros(target.max_time_positions, len(patches))
        return {f"tubelets.{name}": value for name, value in inherited.items()} | {"time_positions.table": times}

    def inherit_image_tokenizer(self, tokenizer: ImageTokenizer) -> None:
        """Replace all weights by those of an image tokenizer in memory, as `inherit_image_weights` adapts them.

        Raises:
            ValueError: It has another `hidden_size`, or weights that cannot be adapted.
        """
        if tokenizer.hidden_size != self.hidden_size:
            raise ValueError(
                f"The image tokenizer has hidden_size {tokenizer.hidden_size}, this one {self.hidden_size}; both must "
                "belong to the same trunk."
            )
        if "convolutional" in (tokenizer.config.patch_embedding, self.config.patch_embedding):
            raise ValueError(
                "Only patch_embedding 'linear' is inherited, from a tokenizer that has it to one that has it."
            )
        weights = self.inherit_image_weights(tokenizer.state_dict(), tokenizer.config, self.config)
        self.load_state_dict(weights)

    def forward(
        self,
        pixel_values_videos: Tensor,
        padding_mask_videos: Tensor | None = None,
        pixel_mask_videos: Tensor | None = None,
    ) -> TokenSequence:
        """Tokenize a batch of clips.

        Args:
            pixel_values_videos: `(batch, frames, channels, height, width)`, normalised, one frame or more.
            padding_mask_videos: `(batch, frames)`, true in the frames at the start that are the clip's; `None` when all
                clips fill the tensor. A clip without any true frame gets no real token.
            pixel_mask_videos: `(batch, height, width)`, true in the rectangle at the top left that the frames of the
                clip fill; `None` when all fill the tensor.

        Returns:
            `(batch, times * rows * columns, hidden)` with a `GridLayout` of the padded batch. `times` is
            `frames / tubelet_size` rounded up: a clip's last frame is repeated until its last tubelet is complete.

        Raises:
            ValueError: Not five dimensions, no frame, another number of channels than the tokenizer was made for, or as
                `read_mask`.
        """
        self._check(pixel_values_videos)
        in_time, (lengths,) = read_mask("padding_mask_videos", padding_mask_videos, pixel_values_videos, [1])
        inside, _ = read_mask("pixel_mask_videos", pixel_mask_videos, pixel_values_videos, [3, 4])
        frames = self._complete(pixel_values_videos, in_time, lengths)
        batch, times = frames.shape[0], frames.shape[1] // self.tubelet_size
        pictures = frames.reshape(batch * times, -1, *frames.shape[3:])
        spatial = self.tubelets(pictures, None if inside is None else inside.repeat_interleave(times, dim=0))

        own_times = (lengths + self.tubelet_size - 1) // self.tubelet_size
        tokens = spatial.embeddings.view(batch, times, -1, self.hidden_size)
        tokens = tokens + self.time_positions(own_times, times)[:, :, None]
        real = None if spatial.mask is None else spatial.mask.view(batch, times, -1)
        if in_time is not None:
            in_time = first_places([own_times], [times])[:, :, None]
            real = in_time.expand(-1, -1, tokens.shape[2]) if real is None else real & in_time
        layout = GridLayout(
            (times, *spatial.layout.shape),
            (self.tubelet_size, *self.tubelets.patch_size),
            (self.tubelet_size, *self.tubelets.patch_size),
        )
        return TokenSequence(tokens.flatten(1, 2), None if real is None else real.flatten(1), layout)

    def _complete(self, frames: Tensor, mask: Tensor | None, lengths: Tensor) -> Tensor:
        """Fill `frames` up to a multiple of the tubelet, and everything after a clip's end with its last frame."""
        size = frames.shape[1] + -frames.shape[1] % self.tubelet_size
        # A graph takes other sizes too; to compare them already fixes them in it.
        if not torch.compiler.is_exporting() and mask is None and size == frames.shape[1]:
            return frames
        places = torch.arange(size, device=frames.device)
        if mask is None:
            return frames[:, places.clamp(max=frames.shape[1] - 1)]
        # A clip without frames has no last one: what lies there may be anything, so it becomes zero.
        frames = frames.masked_fill(~mask[:, :, None, None, None], 0)
        last = (lengths - 1).clamp(min=0)[:, None]
        return frames[torch.arange(frames.shape[0], device=frames.device)[:, None], places.minimum(last)]

    def _check(self, pixels: Tensor) -> None:
        shape, channels = tuple(pixels.shape), self.config.num_channels
        if len(shape) != 5 or shape[2] != channels or 0 in shape[1:]:
            raise ValueError(
                f"pixel_values_videos must have shape (batch, frames, {channels}, height, width), got {shape}. Convert "
                f"the clips with VideoProcessor(num_channels={channels}), or make the tokenizer with num_channels of "
                "your clips."
            )
