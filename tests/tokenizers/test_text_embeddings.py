"""Tables of embeddings of other text models: found in checkpoints and in memory, copied, kept frozen."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPConfig,
    CLIPModel,
    EncoderDecoderModel,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    T5Config,
    T5EncoderModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTModel,
)

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerModel
from meta_transformer.tokenizers.text import TextTokenizer, TextTokenizerConfig

HIDDEN = 12
TRUNK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BERT = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
DECODER = BertConfig(**{**BERT.to_dict(), "is_decoder": True, "add_cross_attention": True})
TOWER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
SOURCES = {
    "bert": lambda: (model := BertForSequenceClassification(BERT), model.bert.embeddings.word_embeddings),
    "clip": lambda: (
        model := CLIPModel(CLIPConfig(text_config={**TOWER, "vocab_size": 50}, vision_config=TOWER)),
        model.text_model.embeddings.token_embedding,
    ),
    "siglip": lambda: (
        model := SiglipModel(SiglipConfig(text_config={**TOWER, "vocab_size": 50}, vision_config=TOWER)),
        model.text_model.embeddings.token_embedding,
    ),
    "siglip's text part": lambda: (
        model := SiglipTextModel(SiglipTextConfig(**TOWER, vocab_size=50)),
        model.get_input_embeddings(),
    ),
    "blip": lambda: (
        model := BlipForImageTextRetrieval(BlipConfig(text_config={**TOWER, "vocab_size": 50}, vision_config=TOWER)),
        model.text_encoder.embeddings.word_embeddings,
    ),
    "encoder and decoder": lambda: (
        model := EncoderDecoderModel(encoder=BertModel(BERT), decoder=BertLMHeadModel(DECODER)),
        model.encoder.embeddings.word_embeddings,
    ),
    "albert": lambda: (
        model := AlbertModel(AlbertConfig(vocab_size=50, embedding_size=8, hidden_size=8, num_attention_heads=2)),
        model.embeddings.word_embeddings,
    ),
    "t5": lambda: (
        model := T5EncoderModel(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
        model.shared,
    ),
}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("shard", ["50GB", "2KB"], ids=["one file", "shards"])
def test_the_table_of_a_checkpoint_is_found(name: str, shard: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, table = SOURCES[name]()
    source.save_pretrained(tmp_path, max_shard_size=shard)
    config = TextTokenizerConfig.from_embeddings_of(tmp_path, freeze_embeddings=True)
    assert (config.vocab_size, config.embedding_size, config.freeze_embeddings) == (50, 8, True)
    for place in (tmp_path, str(tmp_path)):
        tokenizer = TextTokenizer(config, HIDDEN)
        tokenizer.load_embeddings(place)
        assert torch.equal(tokenizer.embeddings.weight, table.weight)


@pytest.mark.parametrize("name", SOURCES)
def test_the_table_of_a_model_in_memory_is_that_of_its_checkpoint(name: str) -> None:
    torch.manual_seed(0)
    source, table = SOURCES[name]()
    tokenizer = TextTokenizer(TextTokenizerConfig.from_embeddings_of(source), HIDDEN)
    tokenizer.load_embeddings(source)
    assert torch.equal(tokenizer.embeddings.weight, table.weight)


def test_the_table_of_a_model_in_memory_is_copied() -> None:
    source = BertForSequenceClassification(BERT)
    tokenizer = TextTokenizer(TextTokenizerConfig.from_embeddings_of(source), HIDDEN)
    tokenizer.load_embeddings(source)
    table = source.bert.embeddings.word_embeddings.weight
    assert torch.equal(tokenizer.embeddings.weight, table)
    assert tokenizer.embeddings.weight.data_ptr() != table.data_ptr()
    assert tokenizer.embeddings.weight.requires_grad


def test_a_table_of_another_shape_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"shape \(50, 8\), this tokenizer's \(384, 12\); .*from_embeddings_of"):
        TextTokenizer(TextTokenizerConfig(), HIDDEN).load_embeddings(BertForSequenceClassification(BERT))


def test_sources_without_table_are_refused(tmp_path: Path) -> None:
    vision = ViTModel(ViTConfig(**TOWER, image_size=8, patch_size=4))
    vision.save_pretrained(tmp_path / "vision")
    for source in (vision, tmp_path / "vision"):
        with pytest.raises(ValueError, match="no table of word embeddings; name a text model"):
            TextTokenizer(TextTokenizerConfig(), HIDDEN).load_embeddings(source)
    BertForSequenceClassification(BERT).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").rename(tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="none of the files"):
        TextTokenizer(TextTokenizerConfig(), HIDDEN).load_embeddings(tmp_path / "bert")
    with pytest.raises(OSError, match="no/such"):
        TextTokenizer(TextTokenizerConfig(), HIDDEN).load_embeddings("no/such/folder")


def frozen_model() -> tuple[MetaTransformerForClassification, PreTrainedModel]:
    torch.manual_seed(0)
    source = BertForSequenceClassification(BERT)
    options = TextTokenizerConfig.from_embeddings_of(source, freeze_embeddings=True, ngram_size=3)
    model = MetaTransformerForClassification(MetaTransformerConfig(**TRUNK, modalities={"text": options}))
    model.model.tokenizers["text"].load_embeddings(source)
    return model, source


def test_a_frozen_table_stays_frozen_and_itself(tmp_path: Path) -> None:
    model, source = frozen_model()
    table = source.bert.embeddings.word_embeddings.weight
    model.save_pretrained(tmp_path)
    model.unfreeze_encoder()
    loaded = MetaTransformerForClassification.from_pretrained(tmp_path).train()
    for each in (model.train(), loaded):
        weight = each.model.tokenizers["text"].embeddings.weight
        assert not weight.requires_grad
        assert torch.equal(weight, table)
    base = MetaTransformerModel.from_pretrained(tmp_path)
    assert not base.tokenizers["text"].embeddings.weight.requires_grad
    thawed = MetaTransformerModel.from_pretrained(tmp_path, modalities={"text": {"freeze_embeddings": False}})
    assert thawed.tokenizers["text"].embeddings.weight.requires_grad


def test_training_with_a_frozen_table_of_chance_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr("meta_transformer.tokenizers.text.logger.warning_once", warned.append)
    options = TextTokenizerConfig(vocab_size=50, embedding_size=8, freeze_embeddings=True)
    config = MetaTransformerConfig(**TRUNK, modalities={"text": options})
    model, ids = MetaTransformerModel(config), torch.tensor([[5, 6]])
    model.eval()(input_ids=ids)
    assert not warned  # it may be filled yet
    model.train()(input_ids=ids)
    assert "random embeddings" in warned.pop()
    model.save_pretrained(tmp_path)
    MetaTransformerModel.from_pretrained(tmp_path).train()(input_ids=ids)
    other = MetaTransformerModel(config)
    other.load_state_dict(model.state_dict())
    other.train()(input_ids=ids)
    model.tokenizers["text"].load_embeddings(BertForSequenceClassification(BERT))
    model(input_ids=ids)
    assert not warned


def test_training_leaves_a_frozen_table_and_moves_the_rest(tmp_path: Path) -> None:
    model, source = frozen_model()
    before = {name: value.clone() for name, value in model.model.tokenizers.state_dict().items()}
    data = [{"input_ids": torch.tensor([5, 6 + index, 7]), "labels": index % 2} for index in range(8)]
    arguments = TrainingArguments(
        tmp_path, max_steps=3, learning_rate=0.1, weight_decay=0.1, use_cpu=True, report_to=[], save_strategy="no"
    )
    Trainer(model, arguments, train_dataset=data).train()
    after = model.model.tokenizers.state_dict()
    assert torch.equal(after["text.embeddings.weight"], source.bert.embeddings.word_embeddings.weight)
    assert all((after[name] - before[name]).abs().max() > 0 for name in before if "embeddings" not in name)
