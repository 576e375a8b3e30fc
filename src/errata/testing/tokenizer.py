"""A tiny byte-level tokenizer, trained in memory in a few milliseconds.

It has what tests of a language-model toolkit trip over in real tokenizers: words of one and of several tokens, a space
that belongs to the token after it, characters split over tokens, character offsets, distinct special tokens and a chat
template.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

# The order fixes the ids: pad 0, bos 1, eos 2.
SPECIAL_TOKENS = (PAD, BOS, EOS, TURN_START, TURN_END)
VOCABULARY_SIZE = 512
MODEL_MAX_LENGTH = 256

# Enough repetition that frequent words become one token, enough variety that names still take several.
CORPUS = """\
The city of Marlow stands on the river Tane, and the river divides the old town from the new. In the old town the houses
are narrow and tall; in the new town the streets are wide, and the people plant trees along them. Anna Petrova was born
in Marlow, in a house near the bridge. Her mother, Helena, was a teacher of music, and her father, Viktor, was a captain
on the river. He used to say: "The river is the oldest street of the city, and nobody has ever had to pave it."

Paris is the capital of France. Rome is the capital of Italy. Vienna is the capital of Austria, and the Danube flows
through it. The Eiffel Tower is in Paris; the Colosseum is in Rome. London is the capital of England and lies on the
Thames. Berlin is the capital of Germany. Who would not want to see them all? "I would," said Anna, "and I will!"

When she was nineteen, Anna left the city and went to London, where she worked in a library. She learned English there,
and then Italian, and then German. The library belonged to the university, and the university belonged, as people said,
to its professors. One of them, Professor James Whitman, was the author of a book about bridges. He asked her to read it
with a pencil in her hand. She found forty-two errors, and she wrote them down on two sheets of paper: the page, the
line, the word that was wrong, the word that was right. "This is the best part of the book," said the professor, and he
had the two sheets printed and put at the end of it.

In the north of the country the mountains begin. The river Tane comes from there: it is a small stream at first, cold
and clear, then it takes in the water of the Orla and of the Vess, and when it comes to the city it is as wide as a
market square. In spring it rises. In the summer of 1954 it was so low that the children could walk from one side to the
other, and in the winter of 1963 it froze, and there was a fair on the ice, with music and lanterns.

Maria Gonzalez plays the violin. Robert Lindqvist plays football for the club of the city. Peter Okafor is a doctor and
works in the hospital on the hill. The mother tongue of Robert is Swedish; the mother tongue of Maria is Spanish. Where
was Peter born? He was born in Lagos, and he lives in Marlow. What is the capital of Sweden? The capital of Sweden is
Stockholm. The headquarters of the newspaper are in the street that leads to the station, and the editor of the
newspaper is Sofia Brandt, who reads every word before it is printed, and who says that a newspaper without a column of
corrections is a newspaper that nobody reads.
"""

CHAT_TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def tiny_tokenizer(
    *, chat_template: bool = True, padding_side: Literal["left", "right"] = "right", bos: bool = False
) -> PreTrainedTokenizerFast:
    """Return a new byte-level BPE tokenizer of 512 tokens; the same one in every process.

    Every UTF-8 string survives encoding and decoding. A token's offsets include the space before its word, as they do
    in Llama 3 and Qwen 2; all tokens of one character share that character's offsets.

    Args:
        chat_template: Whether it carries a ChatML template, as instruction-tuned models do.
        padding_side: Where a batch is padded.
        bos: Whether each text begins with ``<bos>``, as with Llama 2 and Gemma. The chat template then begins with it
            too, so a rendered conversation has to be encoded with ``add_special_tokens=False``.
    """
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_trained())
    if bos:
        backend.post_processor = TemplateProcessing(
            single=f"{BOS} $A",
            pair=f"{BOS} $A {BOS}:1 $B:1",
            special_tokens=[(BOS, backend.token_to_id(BOS))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[TURN_START, TURN_END],
        padding_side=padding_side,
        model_max_length=MODEL_MAX_LENGTH,
        # Without this a call returns token_type_ids too, and GPT-2 would add their embeddings to its input.
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    if chat_template:
        tokenizer.chat_template = ("{{ bos_token }}" if bos else "") + CHAT_TEMPLATE
    return tokenizer


@cache
def _trained() -> str:
    """The trained tokenizer as JSON: a string can be cached and shared, the object it describes can be altered."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return str(tokenizer.to_str())
