"""Fill the cache in the folder that is named, and print a hash of the features; tests run and kill it."""

import sys

import torch

from meta_transformer import MetaTransformerConfig, MetaTransformerForClassification, MetaTransformerProcessor
from meta_transformer.training import DataCollatorForMetaTransformer, FeatureCache, feature_files
from meta_transformer.training.content_hash import content_hash

processor = MetaTransformerProcessor(text=True)
torch.manual_seed(0)
model = MetaTransformerForClassification(
    MetaTransformerConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        modalities=processor.tokenizer_configs(),
    )
)
rows = [{"text": f"number {number}", "labels": number % 2} for number in range(400)]
feature_files._FILE_BYTES = 1000
print("begins", flush=True)
cache = FeatureCache(sys.argv[1])
features = cache.features(model, rows, DataCollatorForMetaTransformer(processor), batch_size=2, progress=False)
print(content_hash([features[number]["features"][""].tokens for number in range(400)]))
