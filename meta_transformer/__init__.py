"""One frozen transformer, every modality.

Raw data becomes tokens, one shared, pretrained, frozen ViT encodes them, small heads on top solve the task. Importing
the package registers its classes with transformers' Auto classes.
"""

from importlib import import_module
from pkgutil import iter_modules

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForVideoClassification,
    AutoProcessor,
)

from . import heads, tokenizers
from .registry import list_heads, list_modalities, register_head, register_modality

__version__ = "0.1.0"


def _register_built_in() -> None:
    """Register the files of `tokenizers/` and `heads/`: the word is the file's name and the prefix of its classes."""
    for name in (module.name for module in iter_modules(tokenizers.__path__)):
        prefix = "".join(word.capitalize() for word in name.split("_"))
        tokenizer_class = getattr(import_module(f".tokenizers.{name}", __name__), f"{prefix}Tokenizer", None)
        if tokenizer_class is not None:
            processor_class = getattr(import_module(f".processors.{name}", __name__), f"{prefix}Processor")
            register_modality(name, processor_class=processor_class, tokenizer_class=tokenizer_class)
    for name in (module.name for module in iter_modules(heads.__path__)):
        prefix = "".join(word.capitalize() for word in name.split("_"))
        head_class = getattr(import_module(f".heads.{name}", __name__), f"{prefix}Head", None)
        if head_class is not None:
            register_head(name, head_class=head_class)


_register_built_in()

# After the registration: configurations and models look modalities and heads up.
from .configuration import MetaTransformerConfig  # noqa: E402
from .modeling import MetaTransformerForTask, MetaTransformerModel  # noqa: E402
from .pipelines import register_pipelines  # noqa: E402
from .processing import MetaTransformerProcessor  # noqa: E402
from .sequence import TokenSequence  # noqa: E402
from .tasks import (  # noqa: E402
    MetaTransformerForClassification,
    MetaTransformerForForecasting,
    MetaTransformerForMultiTask,
    MetaTransformerForObjectDetection,
    MetaTransformerForRegression,
    MetaTransformerForRetrieval,
    MetaTransformerForSegmentation,
    MetaTransformerForTokenClassification,
)

AutoConfig.register(MetaTransformerConfig.model_type, MetaTransformerConfig, exist_ok=True)
AutoModel.register(MetaTransformerConfig, MetaTransformerModel, exist_ok=True)
for _auto_class in (
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForVideoClassification,
):
    _auto_class.register(MetaTransformerConfig, MetaTransformerForClassification, exist_ok=True)
AutoModelForObjectDetection.register(MetaTransformerConfig, MetaTransformerForObjectDetection, exist_ok=True)
AutoModelForSemanticSegmentation.register(MetaTransformerConfig, MetaTransformerForSegmentation, exist_ok=True)
AutoModelForTokenClassification.register(MetaTransformerConfig, MetaTransformerForTokenClassification, exist_ok=True)
AutoProcessor.register(MetaTransformerConfig, MetaTransformerProcessor, exist_ok=True)
register_pipelines()

__all__ = [
    "MetaTransformerConfig",
    "MetaTransformerForClassification",
    "MetaTransformerForForecasting",
    "MetaTransformerForMultiTask",
    "MetaTransformerForObjectDetection",
    "MetaTransformerForRegression",
    "MetaTransformerForRetrieval",
    "MetaTransformerForSegmentation",
    "MetaTransformerForTask",
    "MetaTransformerForTokenClassification",
    "MetaTransformerModel",
    "MetaTransformerProcessor",
    "TokenSequence",
    "list_heads",
    "list_modalities",
    "register_head",
    "register_modality",
]
