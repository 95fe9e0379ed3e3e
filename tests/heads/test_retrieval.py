"""The retrieval head: its losses against loops over the definitions, and CLIP's of transformers."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from meta_transformer import MetaTransformerConfig, MetaTransformerForRetrieval, MetaTransformerProcessor
from meta_transformer.heads.retrieval import RetrievalHead, RetrievalHeadConfig

SHAPE = {
    "initializer_range": 0.1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def head(**options) -> RetrievalHead:
    config = MetaTransformerConfig(**SHAPE, modalities=["image", "text"])
    made = RetrievalHead(RetrievalHeadConfig(embed_dim=8, **options), config).eval()
    made.init_parameters(0.02)
    return made


def embeddings(count: int, modalities: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, modalities, 8, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(drawn, dim=-1)


def model(**options) -> MetaTransformerForRetrieval:
    torch.manual_seed(0)
    processor = MetaTransformerProcessor(image=True, text=True)
    config = MetaTransformerConfig(
        **SHAPE, modalities=processor.tokenizer_configs(), heads={"retrieval": {"embed_dim": 8, **options}}
    )
    return MetaTransformerForRetrieval(config).eval()


def batch(count: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 32, 32, generator=generator)
    texts = ["a cat", "the tallest mountain", "dogs bark at night", "rain"][:count]
    return dict(MetaTransformerProcessor(image=True, text=True)(image=list(images), text=texts))


def test_between_two_modalities_the_loss_is_clips() -> None:
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    embeds = embeddings(6, 2)
    expected = image_text_contrastive_loss(embeds[:, 1] @ embeds[:, 0].T / 0.07)
    assert_close(head().loss(embeds, torch.arange(6)), expected)


def test_of_several_right_ones_the_log_probabilities_are_averaged() -> None:
    embeds, labels = embeddings(7, 1), torch.tensor([0, 0, 1, 1, 1, 2, 0])
    similarity = (embeds[:, 0] @ embeds[:, 0].T / 0.1).double()
    losses = []
    for i in range(7):
        total = sum(math.exp(similarity[i, j]) for j in range(7) if j != i)
        right = [j for j in range(7) if j != i and labels[i] == labels[j]]
        losses.append(-sum(math.log(math.exp(similarity[i, j]) / total) for j in right) / max(1, len(right)))
    found = head(temperature=0.1).loss(embeds, labels)
    assert found.item() == pytest.approx(sum(losses) / 7, rel=1e-5)


def test_the_triplet_loss_takes_the_farthest_right_and_the_nearest_wrong_one() -> None:
    embeds, labels = embeddings(8, 1, seed=3), torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    losses = []
    for i in range(8):
        distances = (embeds[i, 0] - embeds[:, 0]).norm(dim=-1)
        right = [distances[j].item() for j in range(8) if j != i and labels[j] == labels[i]]
        wrong = [distances[j].item() for j in range(8) if labels[j] != labels[i]]
        losses.append(max(0.0, max(right) - min(wrong) + 0.5) if right else 0.0)
    assert sum(losses) > 0
    found = head(loss="triplet", margin=0.5).loss(embeds, labels)
    assert found.item() == pytest.approx(sum(losses) / 8, rel=1e-4)


def test_embeddings_that_coincide_have_finite_gradients() -> None:
    embeds = embeddings(2, 1).repeat(2, 1, 1).requires_grad_()
    head(loss="triplet").loss(embeds, torch.tensor([0, 0, 0, 1])).backward()
    assert embeds.grad.isfinite().all()


def test_embeddings_have_length_1_and_do_not_depend_on_the_other_modality() -> None:
    made, inputs = model(), batch()
    embeds = made.get_embeds(**inputs)
    assert list(embeds) == ["image", "text"]
    for name, keys in (("image", ["pixel_values"]), ("text", ["input_ids", "attention_mask"])):
        alone = made.get_embeds(**{key: inputs[key] for key in keys if key in inputs})
        assert_close(embeds[name], alone[name])
        assert_close(embeds[name].norm(dim=-1), torch.ones(3))


def test_similarity_is_the_cosine() -> None:
    queries, gallery = torch.randn(3, 8), torch.randn(5, 8)
    expected = functional.cosine_similarity(queries[:, None], gallery[None], dim=-1)
    assert_close(MetaTransformerForRetrieval.similarity(queries, gallery), expected)


def test_training_brings_pairs_together() -> None:
    made, inputs = model().train(), batch(4)
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(40):
        made(**inputs, labels=torch.arange(4)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    embeds = made.eval().get_embeds(**inputs)
    nearest = made.similarity(embeds["text"], embeds["image"]).argmax(dim=1)
    assert nearest.tolist() == [0, 1, 2, 3]


def test_the_scale_of_similarities_stays_below_a_hundred() -> None:
    made, embeds = head(), embeddings(4, 2)
    with torch.no_grad():
        made.log_scale.fill_(20.0)
    assert_close(made.loss(embeds, torch.arange(4)), head(temperature=0.01).loss(embeds, torch.arange(4)))


def test_parts_of_an_accumulated_batch_are_weighed_by_their_samples() -> None:
    made, embeds = head(), embeddings(6, 2)
    parts = [made.loss(embeds[:2], torch.arange(2), 6), made.loss(embeds[2:], torch.arange(4), 6)]
    alone = [made.loss(embeds[:2], torch.arange(2)), made.loss(embeds[2:], torch.arange(4))]
    assert_close(sum(parts), (2 * alone[0] + 4 * alone[1]) / 6)


def test_post_processing_gives_arrays() -> None:
    output = model()(**batch())
    assert [each.shape for each in model().post_process(output)] == [(2, 8)] * 3


@pytest.mark.parametrize("labels", [torch.arange(2), torch.zeros(3, 2, dtype=torch.long), torch.zeros(3)])
def test_bad_labels_are_refused(labels) -> None:
    with pytest.raises(ValueError, match="labels must be 3 integers"):
        model()(**batch(), labels=labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dim": 0}, "embed_dim must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must lie in"),
        ({"margin": 2.5}, "margin must be positive and below 2"),
        ({"loss": "cosine"}, "loss"),
        ({"dropout": -0.1}, "dropout must be"),
    ],
)
def test_bad_options_are_refused(options, message) -> None:
    with pytest.raises(Exception, match=message):
        RetrievalHeadConfig(**options)
