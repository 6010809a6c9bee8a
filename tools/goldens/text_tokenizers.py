"""Trains small tokenizers of each kind and writes them with what they must give.

    python tools/goldens/text_tokenizers.py

Writes crates/text/tests/fixtures/tokenizers: tokenizer.json files made and run by Hugging Face's
tokenizers, a SentencePiece vocabulary as GGUF holds it with the ids that sentencepiece itself
gives, and goldens.json. With `--smollm2 FILE.gguf` it also writes smollm2.json: ids for that
file's vocabulary. Needs tokenizers, sentencepiece and (for --smollm2) gguf.
"""

import argparse
import io
import json
import pathlib
import random

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

FOLDER = pathlib.Path(__file__).parents[2] / "crates/text/tests/fixtures/tokenizers"

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Thinking about the answer, then answering.",
    "It's what we'll do: they've said that I'd better not, don't you think? You're right, I'm sure.",
    "def main(args):\n    for i in range(10):\n        print(i, args[i])\n    return {\"a\": 1, 'b': [2, 3]}\n",
    "fn main() {\n\tlet x: Vec<u32> = vec![1, 2, 3];\n\tprintln!(\"{:?}\", x);\n}\n",
    "Größe, Öl, naïve café, señor, Привет мир, это проверка. Καλημέρα κόσμε.",
    "日本語の文章です。漢字とかなが混ざっています。中文句子在这里。한국어 문장도 있습니다.",
    "2 + 2 = 4; 10 * 10 = 100; 3.14159 and 2.71828, 1,000,000 or 1e-5 in 2025.",
    "<think>\nFirst, consider the case n = 0. Then the sum is 0.\n</think>\n\nThe answer is 0.\n",
    "😀 😃 👍 emoji are several bytes each 🎉🎉  and   spaces    come in runs\n\n\n",
] * 4

BASE = [
    "", " ", "  ", "a", " a", "a ", "Hello, world!", "a  b   c\n\n\nd \t e", " \n \n x", "x\r\ny\r", "\0", "a\0b\0\0",
    "the the  the", "def f(x):\n    return x**2  # ok\n", "naïve café", "e\u0301 n\u0303 가", "日本語、漢字とかな。",
    "한국어 문장", "Привет, мир!", "مرحبا بالعالم", "👨‍👩‍👧‍👦 🏳️‍🌈 😀😀", "1234567890 3.14159 1e-10 ٣٤٥ Ⅷ ½",
    "don't I'LL we'Ve it'S", "'tis 'Twas x'y", "<think>\nhmm\n</think>\n\nok", "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start|><|im_start|>", "a<|im_end|>", "<|im_", "<｜User｜>hey<｜Assistant｜> you", "</s><s> x", "x <s> y",
    "http://a.b/c?d=e&f=g#h", "{\"a\": [1, 2, {\"b\": null}]}", "∑∫√π ≤ ≥", "\u200b\u200d\ufeff x \u00a0y\u3000z",
    "a" * 300, " " * 300, "\n" * 50, "ab " * 50, "ſ's 'ſ", "𝔘𝔫𝔦 𐍈", "!!!???...---___", "\ud7ff\ue000", "हिन्दी में ไทย",
    "▁ a▁b ▁▁", "<0x41>", "Ġa Ċ",
]  # fmt: skip


def texts():
    draw = random.Random(7)
    alphabet = list("abcdehinort XYZ 0123  \n\t.,'!<|>_-éß漢字かなдж😀\u0301\u00a0\r\0")
    odd = ["".join(draw.choice(alphabet) for _ in range(draw.randint(1, 40))) for _ in range(80)]
    return BASE + odd


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + SPACES
)


def byte_level(steps, normalizer, special, added, vocab_size=560):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(added)
    return tokenizer


def bytes_only():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def qwen():
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = [AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)]
    return byte_level([split(QWEN), bytes_only()], normalizers.NFC(), special, added)


def deepseek():
    steps = [split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"), split(DEEPSEEK), bytes_only()]
    added = [AddedToken(text, normalized=True) for text in ("<｜User｜>", "<｜Assistant｜>")]
    tokenizer = byte_level(steps, normalizers.Sequence([]), ["<s>", "</s>"], added)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def smollm():
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return byte_level(steps, None, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [])


def train_sentencepiece():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n") if line]),
        model_writer=model,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        character_coverage=0.985,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_gguf(processor):
    """The vocabulary as GGUF keys hold it."""
    ids = range(processor.get_piece_size())

    def token_type(i):
        if processor.is_unknown(i):
            return 2
        if processor.is_control(i):
            return 3
        return 6 if processor.is_byte(i) else 1

    return {
        "tokens": [processor.id_to_piece(i) for i in ids],
        "scores": [processor.get_score(i) for i in ids],
        "token_types": [token_type(i) for i in ids],
    }


def sentencepiece_bpe(gguf, metaspace):
    """The same vocabulary as a tokenizer.json, in the older and in the newer form."""
    vocab = {token: i for i, token in enumerate(gguf["tokens"])}
    plain = {token: i for token, i in vocab.items() if gguf["token_types"][i] == 1}
    merges = []
    for token, i in plain.items():
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        cuts = [(left, right) for left, right in cuts if left in plain and right in plain]
        merges += [(gguf["scores"][i], vocab[left], vocab[right], left, right) for left, right in cuts]
    merges = [(left, right) for *_, left, right in sorted(merges, key=lambda m: m[:3], reverse=True)]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def goldens(tokenizer):
    def case(text):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        decoded = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True)]
        return [ids, *decoded]

    return [case(text) for text in texts()]


def write(name, value):
    (FOLDER / name).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_smollm2(path):
    """The pre-tokenizer "smollm" over the vocabulary of a GGUF file."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    tokens, types, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
    model = models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges])
    tokenizer = Tokenizer(model)
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, types) if kind == 3])
    write("smollm2.json", [[text, *case] for text, case in zip(texts(), goldens(tokenizer))])


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--smollm2", help="the GGUF file of SmolLM2-135M-Instruct")
    smollm2 = options.parse_args().smollm2
    FOLDER.mkdir(parents=True, exist_ok=True)
    if smollm2:
        return write_smollm2(smollm2)
    processor = train_sentencepiece()
    vocabulary = sentencepiece_gguf(processor)
    made = {
        "qwen": qwen(),
        "deepseek": deepseek(),
        "smollm": smollm(),
        "sentencepiece": sentencepiece_bpe(vocabulary, metaspace=False),
        "metaspace": sentencepiece_bpe(vocabulary, metaspace=True),
    }
    for name, tokenizer in made.items():
        write(f"{name}.json", json.loads(tokenizer.to_str()))
    # sentencepiece knows no tokens inside text: those texts are left to the tokenizers above.
    plain = [text if not any(t in text for t in ("<s>", "</s>", "▁")) else None for text in texts()]
    reference = [None if text is None else processor.encode(text) for text in plain]
    write("sentencepiece-gguf.json", {**vocabulary, "ids": reference})
    write("goldens.json", {"texts": texts(), "goldens": {name: goldens(t) for name, t in made.items()}})
    hf = [ids for ids, *_ in goldens(made["sentencepiece"])]
    print("texts:", len(plain), "sentencepiece differs:", [t for t, a, b in zip(plain, hf, reference) if b is not None and a != b])


main()
