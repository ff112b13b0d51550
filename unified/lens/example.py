"""The classic question of credit, as an example that needs no data and no model.

One prompt and three answers: one is right, one is right but names the wrong city on the way, one is wrong. Who is given
one number per answer cannot know that `Nanjing` is what is wrong in the third and harmless in the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unified.data import Example
from unified.errors import UserError, unknown_name

if TYPE_CHECKING:
    from unified.models import Artifact

EXAMPLES = {
    "credit": Example(
        "What is the capital of China?",
        [" The capital is Beijing.", " The capital is not Nanjing, it is Beijing.", " The capital is Nanjing."],
        [1.0, 1.0, 0.0],
    )
}
#: of the tiny model: small enough to be made in a second, with weights so large that its tokens differ
CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
SPREAD = 0.15


def example_rows(name: str) -> list[Example]:
    """The rows of an example. UserError for a name that there is none of."""
    if name not in EXAMPLES:
        raise UserError(unknown_name("example", name, EXAMPLES).text())
    return [EXAMPLES[name]]


def tiny_model(name: str, seed: int = 0) -> Artifact:
    """A policy with random weights whose tokens are the words of an example; the same for the same seed."""
    import torch

    from unified.models import new_policy

    made = new_policy(CONFIG, _tokenizer(example_rows(name)), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in made.module.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(0, SPREAD)
    return made


def _tokenizer(rows: list[Example]) -> Any:
    """A token for each word with the space before it, and for each mark."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Split(Regex(r" ?\w+|[^\w\s]"), "isolated")
    texts = [text for row in rows for text in (row.prompt, *row.answers)]
    words = dict.fromkeys(word for text in texts for word, _ in split.pre_tokenize_str(str(text)))
    names = ["<pad>", "<s>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
