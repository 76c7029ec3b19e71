"""`train_text_encoder`: a small BERT that learns on the user's own texts to guess the words taken out of them.

Masked language modelling as in Devlin et al., BERT, arXiv 1810.04805 (2018), section 3.1: of the tokens 15 % are
guessed; 80 % of these are shown as [MASK], 10 % as a random token, 10 % as they are. The rate follows one cycle (Smith
and Topin, arXiv 1708.07120).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .encoders import fingerprint_of
from .errors import EncoderError
from .quiet import quiet
from .text_files import checked_texts
from .torch_encoder import choose_device
from .transformers_encoder import _silent_transformers
from .transformers_text import TransformersTextEncoder

# The tokens that are no words; their numbers are their places here.
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Share of the tokens that are guessed; of these, the share shown as [MASK], and as a random token.
GUESSED, AS_MASK, AS_RANDOM = 0.15, 0.8, 0.1

# Pieces of text per step; the largest learning rate; the share of the steps that lead up to it; the weight decay.
BATCH, PEAK_RATE, RISE, DECAY = 32, 1e-3, 0.1, 0.01

# Fewest different texts a language model is learnt on: one of ten is held out.
LEAST_TEXTS = 10

# The state of an unfinished training, and the seconds between two of them.
STATE_FILE, STATE_SECONDS = "training.safetensors", 30.0

_PAD, _CLS, _SEP, _MASK = (SPECIAL.index(token) for token in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"))
_IGNORED = -100


@dataclass(frozen=True)
class LanguageModelOptions:
    """How a language model is trained; see `train_text_encoder`.

    Raises:
        EncoderError: A number is out of its bounds.
    """

    dim: int
    layers: int
    heads: int
    vocabulary: int
    epochs: int
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        bounds = {
            "dim": (1, 4096), "layers": (1, 48), "heads": (1, 64), "vocabulary": (50, 200_000),
            "epochs": (1, 100_000), "max_tokens": (4, 8192), "seed": (0, 2**31 - 1),
        }  # fmt: skip
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise EncoderError(f"{name} must be a whole number from {least:,} to {most:,}; got {value!r}.")
        if self.dim % self.heads:
            raise EncoderError(f"dim must be a multiple of heads; got {self.dim} and {self.heads}.")


@dataclass(frozen=True)
class LanguageModelRecord:
    """How a language model came about, as it lies under "training" in text_encoder.json.

    Attributes:
        options: What was asked for.
        texts: Different texts it was trained on.
        held_out_texts: Different texts, a tenth of all, that it never saw.
        tokens: Size of the vocabulary that was learnt.
        steps: Steps of the optimiser.
        loss: Mean cross-entropy of the guesses in the last epoch, in nats.
        guesses: Tokens of the held-out texts that were guessed, each shown as [MASK].
        masked_accuracy: Share of these that were guessed right.
        frequency_accuracy: Share that is right by always guessing the commonest token of the training texts.
    """

    options: LanguageModelOptions
    texts: int
    held_out_texts: int
    tokens: int
    steps: int
    loss: float
    guesses: int
    masked_accuracy: float
    frequency_accuracy: float


def train_text_encoder(
    texts: Sequence[str],
    out: str | os.PathLike[str] | None = None,
    *,
    dim: int = 128,
    layers: int = 2,
    heads: int = 4,
    vocabulary: int = 4000,
    epochs: int = 30,
    max_tokens: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> TransformersTextEncoder:
    """Learn a vocabulary and a small BERT on texts, nothing else: no download.

    A text that comes several times counts once. One different text in ten is held out; the share of its hidden words
    that the model guesses is in the encoder's `training["masked_accuracy"]`, beside that of always guessing the
    commonest token. Texts, options and seed decide the weights on one machine's CPU; CUDA, taken where there is one,
    may round differently from run to run. An interrupted training goes on where it was, to the very weights of an
    uninterrupted one, when it is called again with the same texts, options and `out`. With the defaults a thousand
    reports take some minutes on one core.

    Args:
        texts: Reports or sentences, at least 10 different ones; longer ones than `max_tokens` are learnt in pieces.
        out: Folder for the encoder, which `load_text_encoder` loads; nothing is written without it.
        dim: Length of the vectors, a multiple of `heads`.
        layers: Of the transformer.
        heads: Of attention in each layer.
        vocabulary: Most word pieces to learn (WordPiece).
        epochs: Passes over the texts.
        max_tokens: Longest text, in word pieces, the encoder will take.
        seed: Of weights, order and masks.
        progress: Whether to show a bar on standard error.

    Returns:
        The encoder: mean over the tokens, see `TransformersTextEncoder`.

    Raises:
        EncoderError: A number is out of its bounds, too few different texts, a folder that cannot be written, or a loss
            that is no longer finite.
    """
    options = LanguageModelOptions(dim, layers, heads, vocabulary, epochs, max_tokens, seed)
    different = list(dict.fromkeys(text for text in checked_texts(texts, "train_text_encoder") if text.strip()))
    if len(different) < LEAST_TEXTS:
        raise EncoderError(f"A language model needs at least {LEAST_TEXTS} different texts; got {len(different)}.")
    folder = None if out is None else _made(Path(out))
    order = np.random.default_rng(seed).permutation(len(different))
    held_out, learnt = np.split(order, [len(different) // 10])
    tokenizer = learn_tokenizer([different[i] for i in learnt], vocabulary, max_tokens)
    pieces, unseen = (_pieces([different[i] for i in part], tokenizer, max_tokens) for part in (learnt, held_out))
    if not pieces:
        raise EncoderError(f"None of the {len(different)} different texts holds a letter or a digit to learn from.")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        training = _Training(options, len(tokenizer), pieces, _run_hash(options, different))
        with _bar(progress, epochs * training.steps_per_epoch) as advance:
            training.run(folder, advance)
    guesses, right, usual = _held_out_accuracy(training, unseen)
    record = LanguageModelRecord(
        options=options,
        texts=len(learnt),
        held_out_texts=len(held_out),
        tokens=len(tokenizer),
        steps=epochs * training.steps_per_epoch,
        loss=training.loss,
        guesses=guesses,
        masked_accuracy=right,
        frequency_accuracy=usual,
    )
    encoder = TransformersTextEncoder(
        training.model.bert,
        tokenizer,
        pooling="mean",
        name=f"bert-{dim}",
        max_tokens=max_tokens,
        training=asdict(record),
    )
    if folder is not None:
        encoder.save(folder)
        (folder / STATE_FILE).unlink(missing_ok=True)
    return encoder


def learn_tokenizer(texts: Sequence[str], vocabulary: int, max_tokens: int) -> Any:
    """Learn WordPiece on texts, in lower case and without accents, and return a `transformers.BertTokenizer`.

    The trainer of `tokenizers` numbers the letters inside words in an order of its own that changes from run to run,
    and ties between merges go by number. So these letters are given to it beforehand, in the order of Unicode. Letters
    beyond the commonest quarter of the vocabulary become [UNK].
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    normaliser = normalizers.BertNormalizer(lowercase=True)
    plain = [normaliser.normalize_str(text) for text in texts]
    counts = Counter(letter for text in plain for letter in text if not letter.isspace())
    kept = set(sorted(counts, key=lambda letter: (-counts[letter], letter))[: vocabulary // 4])
    if len(kept) < len(counts):
        plain = ["".join(letter if letter in kept else " " for letter in text) for text in plain]
    inside = [f"##{letter}" for letter in sorted(kept - set(string.punctuation))]
    scratch = Tokenizer(models.WordPiece(unk_token=SPECIAL[1]))
    scratch.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        limit_alphabet=len(kept) + 1,
        special_tokens=[*SPECIAL, *inside],
        show_progress=False,
    )
    scratch.train_from_iterator(plain, trainer)
    with quiet(), _silent_transformers():
        from transformers import BertTokenizer

        make: Any = BertTokenizer
        return make(vocab=scratch.get_vocab(with_added_tokens=False), model_max_length=max_tokens)


def hide(
    tokens: torch.Tensor, size: int, generator: torch.Generator, *, always: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose the tokens to be guessed, and hide them.

    Args:
        tokens: Token numbers (n, t); special tokens are never chosen.
        size: Of the vocabulary.
        generator: Of the random choices, on the CPU.
        always: Whether every chosen token is shown as [MASK].

    Returns:
        What the model is shown (n, t), and what it should say (n, t): -100 where nothing is asked.
    """
    words = tokens >= len(SPECIAL)
    chosen = words & (torch.rand(tokens.shape, generator=generator) < GUESSED)
    if not chosen.any():  # short texts: ask for one token at least
        chosen = words & (torch.cumsum(words.flatten(), 0).reshape(words.shape) == 1)
    fate = torch.rand(tokens.shape, generator=generator)
    other = torch.randint(len(SPECIAL), size, tokens.shape, generator=generator)
    shown = torch.where(chosen & ((fate < AS_MASK) | always), _MASK, tokens)
    if not always:
        shown = torch.where(chosen & (fate >= AS_MASK) & (fate < AS_MASK + AS_RANDOM), other, shown)
    return shown, torch.where(chosen, tokens, _IGNORED)


def one_cycle(step: int, steps: int) -> float:
    """Return the rate of a step: up to `PEAK_RATE` in a straight line, down to 0 along half a cosine."""
    rise = max(1, round(RISE * steps))
    if step < rise:
        return PEAK_RATE * (step + 1) / rise
    return 0.5 * PEAK_RATE * (1.0 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


class _Training:
    """A model, its optimiser and what it learns from; each epoch depends on the seed and its number alone."""

    def __init__(self, options: LanguageModelOptions, size: int, pieces: list[list[int]], run: str) -> None:
        with quiet(), _silent_transformers():
            from transformers import BertConfig, BertForMaskedLM

            config = BertConfig(
                vocab_size=size,
                hidden_size=options.dim,
                num_hidden_layers=options.layers,
                num_attention_heads=options.heads,
                intermediate_size=4 * options.dim,
                max_position_embeddings=options.max_tokens,
                pad_token_id=_PAD,
            )
            model: Any = BertForMaskedLM(config)
        self.device = choose_device("auto")
        self.model = model.to(self.device)
        self.options, self.size, self.pieces, self.run_hash = options, size, pieces, run
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=PEAK_RATE, weight_decay=DECAY)
        self.steps_per_epoch = math.ceil(len(pieces) / BATCH)
        self.epoch, self.loss = 0, math.nan

    def run(self, folder: Path | None, advance: Callable[[int, float], None]) -> None:
        """Train to the last epoch, from a state in `folder` where there is one of this very training."""
        if folder is not None and self._restore(folder / STATE_FILE):
            advance(self.epoch * self.steps_per_epoch, self.loss)
        saved = time.monotonic()
        while self.epoch < self.options.epochs:
            self.loss = self.one_epoch(advance)
            self.epoch += 1
            if not math.isfinite(self.loss):
                raise EncoderError(f"The loss is no longer finite in epoch {self.epoch}: try another seed or less dim.")
            if folder is not None and time.monotonic() - saved >= STATE_SECONDS:
                self._save(folder / STATE_FILE)
                saved = time.monotonic()

    def one_epoch(self, advance: Callable[[int, float], None]) -> float:
        """Go once over all pieces in a random order; returns the mean loss of a guess."""
        torch.manual_seed(self.options.seed * 1_000_003 + self.epoch)
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.epoch)
        order = np.random.default_rng([self.options.seed, self.epoch]).permutation(len(self.pieces))
        self.model.train()
        total, count = 0.0, 0
        for number in range(self.steps_per_epoch):
            rate = one_cycle(self.epoch * self.steps_per_epoch + number, self.options.epochs * self.steps_per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch = [self.pieces[i] for i in order[number * BATCH : (number + 1) * BATCH]]
            scores, wanted = self.guess(batch, generator)
            loss = nn.functional.cross_entropy(scores, wanted)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            total, count = total + float(loss.detach()) * len(wanted), count + len(wanted)
            advance(1, total / count)
        return total / count

    def guess(
        self, batch: list[list[int]], generator: torch.Generator, *, always: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hide tokens of some pieces; returns the scores of what was guessed (m, size) and what was right (m,)."""
        tokens = nn.utils.rnn.pad_sequence([torch.tensor(piece) for piece in batch], batch_first=True)
        shown, wanted = (part.to(self.device) for part in hide(tokens, self.size, generator, always=always))
        seen = (tokens != _PAD).long().to(self.device)
        hidden = self.model.bert(input_ids=shown, attention_mask=seen).last_hidden_state
        asked = wanted != _IGNORED
        return self.model.cls(hidden[asked]), wanted[asked]

    def _save(self, path: Path) -> None:
        """Write weights and optimiser under one name in one step."""
        tensors = {f"model.{name}": value.detach().cpu() for name, value in self.model.named_parameters()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value.cpu() for name, value in state.items()}
        new = path.with_name(f".{path.name}.{os.getpid()}")
        facts = {"run": self.run_hash, "epoch": str(self.epoch), "loss": repr(self.loss)}
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, new, metadata=facts)
            new.replace(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                new.unlink()
            reason = getattr(error, "strerror", None) or error
            raise EncoderError(f"The state of the training cannot be written to {path.parent}: {reason}.") from error

    def _restore(self, path: Path) -> bool:
        """Take up the state of this very training; any other file there is of no use and will be replaced."""
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                facts = file.metadata() or {}
                if facts.get("run") != self.run_hash:
                    return False
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError):
            return False
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                value.copy_(tensors[f"model.{name}"])
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".")
                state.setdefault(int(number), {})[name] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.epoch, self.loss = int(facts["epoch"]), float(facts["loss"])
        return True


def _held_out_accuracy(training: _Training, pieces: list[list[int]]) -> tuple[int, float, float]:
    """Return the number of guesses, the share the model has right, and the share the commonest token has right."""
    counts = Counter(token for piece in training.pieces for token in piece if token >= len(SPECIAL))
    usual = max(counts, key=lambda token: (counts[token], -token), default=_MASK)
    generator = torch.Generator().manual_seed(training.options.seed)
    training.model.eval()
    total, right, usual_right = 0, 0, 0
    with torch.inference_mode():
        for start in range(0, len(pieces), BATCH):
            scores, wanted = training.guess(pieces[start : start + BATCH], generator, always=True)
            total += len(wanted)
            right += int((scores.argmax(dim=1) == wanted).sum())
            usual_right += int((wanted == usual).sum())
    return total, right / max(total, 1), usual_right / max(total, 1)


def _pieces(texts: Sequence[str], tokenizer: Any, max_tokens: int) -> list[list[int]]:
    """Cut each text into pieces of at most `max_tokens` tokens, [CLS] and [SEP] included; none without a word."""
    room = max_tokens - 2
    rows = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    cut = [row[start : start + room] for row in rows for start in range(0, len(row), room)]
    return [[_CLS, *piece, _SEP] for piece in cut if max(piece) >= len(SPECIAL)]


def _run_hash(options: LanguageModelOptions, texts: Sequence[str]) -> str:
    content = hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()
    return fingerprint_of({"options": asdict(options), "texts": content, "torch": torch.__version__})


def _made(folder: Path) -> Path:
    """Make the folder now: a training must not find out at its end that it has no place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EncoderError(f"The folder {folder} cannot be made: {error.strerror or error}.") from error
    return folder


@contextmanager
def _bar(shown: bool, total: int) -> Iterator[Callable[[int, float], None]]:
    """Yield the function that is told of steps done and the mean loss: a bar on standard error, or nothing."""
    if not shown:
        yield lambda steps, loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Learning"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("learn", total=total, loss=math.nan)
        yield lambda steps, loss: bar.update(task, advance=steps, loss=loss)
