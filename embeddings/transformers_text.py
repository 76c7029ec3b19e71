"""TransformersTextEncoder: any text model of the transformers library, by hub id or folder, with its tokenizer."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .errors import EncoderError
from .quiet import quiet
from .text import POOLINGS
from .text_files import checked_texts, write_text_encoder
from .torch_encoder import choose_device, device_of, weights_fingerprint
from .transformers_encoder import _NOT_IN_FINGERPRINT, _first_line, _load_model, _silent_transformers

# The pooling of a model of images and texts: its own projected text vector.
TEXT_FEATURES = "text_features"

# Model types trained on texts padded to the full length, padding seen like words: they must get them so.
_ALWAYS_PADDED = {"siglip", "siglip2"}

# Tokens, padding included, that go through the model at once.
_TOKENS_AT_ONCE = 8192

# Longest text, in tokens, where neither the model nor the tokenizer has a limit, and the largest limit that is one.
_DEFAULT_TOKENS, _MOST_TOKENS = 512, 1_000_000

# Settings no vector depends on, besides where the model came from.
_DROPPED = _NOT_IN_FINGERPRINT | {"name_or_path", "id2label", "label2id", "num_labels", "use_cache"}


class TransformersTextEncoder:
    """A transformers text model and its tokenizer as a text encoder.

    `pooling` says how a text's tokens, the model's own start and end tokens among them, become one vector; it is part
    of the fingerprint:

    - "mean": the mean over the tokens, padding left out;
    - "cls" and "last": the first and the last token, padding left out (the last is the one a decoder sums up in);
    - "pooler": the model's own pooled output, where the checkpoint has the weights for it;
    - "text_features": the projected text vector of a model of images and texts (CLIP, SigLIP), in its images' space,
      and the only pooling of such a model.

    Vectors are computed in evaluation mode, in float32, without gradients. The same text beside others can differ by
    float rounding (about 1e-6 relative), no more. Several threads may use one encoder.

    Args:
        model: What `transformers.AutoModel` makes. It is moved to `device` and must not be trained further under this
            encoder: the fingerprint is taken now.
        tokenizer: What `transformers.AutoTokenizer` makes.
        pooling: See above; None takes "text_features" where the model has them, else "mean".
        name: For people.
        max_tokens: Longest text, in tokens; of a longer one the end is not seen, see `truncated`. None takes what
            model and tokenizer allow.
        training: A JSON document on how the weights came about, kept with them.
        device: "auto" takes CUDA where there is one, else the CPU.
        identity: What stands for configuration and tokenizer in the fingerprint; None takes it from both as they are.

    Attributes:
        spec: What `load_text_encoder` takes to find it again, or None.

    Raises:
        EncoderError: The model is no text model, has no such pooling, or takes no texts of that length.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        pooling: str | None = None,
        name: str = "transformers-text",
        max_tokens: int | None = None,
        training: Mapping[str, Any] | None = None,
        device: str = "auto",
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """Move the model to its device, try it on a word, and take the fingerprint."""
        self.model = model.eval().requires_grad_(False).to(choose_device(device))
        self.tokenizer = tokenizer
        self.device = device_of(model)
        self.name = name
        self.spec: str | None = None
        self.training: dict[str, Any] = dict(training or {})
        self.pooling = _checked_pooling(model, pooling, name)
        self._lock = threading.Lock()  # a tokenizer keeps its truncation as a setting
        self.max_tokens = self._checked_length(max_tokens)
        try:
            self.dim = int(self.encode(["a"]).shape[1])
        except EncoderError:
            raise
        except Exception as error:  # each architecture complains in its own way
            raise EncoderError(f"The model {name!r} is no text model: {_first_line(error)}") from error
        self.identity = dict(identity or _identity(model.config.to_diff_dict(), tokenizer))
        self.fingerprint = weights_fingerprint(
            {"kind": "transformers-text", "pooling": self.pooling, "max_tokens": self.max_tokens, **self.identity},
            model,
        )

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Turn n texts into float32 rows (n, dim), as the model made them (not normalised).

        A text without any token, which few tokenizers make of any text, has a row of zeros.

        Raises:
            EncoderError: `texts` is no list of texts, or the tokenizer is not the model's.
        """
        tokens = self._tokens(checked_texts(texts, "encode"), truncation=True)
        rows: NDArray[np.float32] | None = None
        for batch in _batches([self._width(len(ids)) for ids in tokens["input_ids"]]):
            vectors = self._forward({key: [values[i] for i in batch] for key, values in tokens.items()})
            if rows is None:
                rows = np.zeros((len(texts), vectors.shape[1]), dtype=np.float32)
            rows[batch] = vectors
        return np.zeros((len(texts), self.dim), dtype=np.float32) if rows is None else rows

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether it has more than `max_tokens` tokens, so that its end is not seen.

        Raises:
            EncoderError: `texts` is no list of texts.
        """
        tokens = self._tokens(checked_texts(texts, "truncated"), truncation=False)
        return [len(ids) > self.max_tokens for ids in tokens["input_ids"]]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write model and tokenizer in the library's own format, and text_encoder.json; see `write_text_encoder`.

        Raises:
            EncoderError: The folder cannot be written.
        """

        def fill(place: Path) -> None:
            with quiet(), _silent_transformers():
                self.model.save_pretrained(place)
                self.tokenizer.save_pretrained(place)

        document = {
            "kind": "transformers",
            "name": self.name,
            "dim": self.dim,
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "fingerprint": self.fingerprint,
            "identity": self.identity,
            "training": self.training,
        }
        target = write_text_encoder(folder, document, fill)
        self.spec = str(target.absolute())
        return target

    def __repr__(self) -> str:
        """Return the name, the pooling, the dimension and the first digits of the fingerprint."""
        return (
            f"TransformersTextEncoder({self.name!r}, pooling={self.pooling!r}, dim={self.dim}, "
            f"fingerprint={self.fingerprint[:12]!r})"
        )

    def _checked_length(self, wanted: int | None) -> int:
        """Return the longest text in tokens, within what model and tokenizer allow."""
        allowed = _most_tokens(self.model, self.tokenizer)
        if wanted is None:
            return _DEFAULT_TOKENS if allowed is None else allowed
        least = len(self._tokens([""], truncation=False)["input_ids"][0]) + 1
        if type(wanted) is not int or not least <= wanted <= (allowed or _MOST_TOKENS):
            most = f" and at most {allowed:,}" if allowed else ""
            raise EncoderError(f"max_tokens of {self.name!r} must be at least {least}{most}; got {wanted!r}.")
        return wanted

    def _tokens(self, texts: list[str], *, truncation: bool) -> dict[str, list[list[int]]]:
        """Return token numbers, and token types where the model takes them, of each text; nothing is padded."""
        if not texts:
            return {"input_ids": []}
        limit = {"truncation": True, "max_length": self.max_tokens} if truncation else {}
        with self._lock, quiet():
            found = self.tokenizer(texts, padding=False, return_attention_mask=False, verbose=False, **limit)
        typed = any(any(row) for row in found.get("token_type_ids", ()))  # zeros are what a model takes for granted
        typed = typed and self.pooling != TEXT_FEATURES
        typed = typed and "token_type_ids" in inspect.signature(_tower(self.model).forward).parameters
        return {key: found[key] for key in (["input_ids", "token_type_ids"] if typed else ["input_ids"])}

    def _forward(self, tokens: Mapping[str, list[list[int]]]) -> NDArray[np.float32]:
        """Pad a batch of texts on the right, send it through the model, and pool."""
        lengths = [len(ids) for ids in tokens["input_ids"]]
        width = self._width(max(lengths))
        pad = self.tokenizer.pad_token_id
        fill = {"input_ids": 0 if pad is None else pad}
        inputs = {
            key: torch.tensor([row + [fill.get(key, 0)] * (width - len(row)) for row in rows], device=self.device)
            for key, rows in tokens.items()
        }
        words = getattr(self.model.config.get_text_config(), "vocab_size", None)
        if words is not None and int(inputs["input_ids"].max()) >= words:
            raise EncoderError(
                f"The tokenizer of {self.name!r} makes token {int(inputs['input_ids'].max())}, and the model knows "
                f"{words}: they do not belong together."
            )
        ends = torch.tensor(lengths, device=self.device)
        if self.model.config.model_type not in _ALWAYS_PADDED:
            inputs["attention_mask"] = (torch.arange(width, device=self.device) < ends[:, None]).long()
        with torch.inference_mode():
            rows: NDArray[np.float32] = self._pooled(inputs, ends).float().cpu().numpy()
        return rows

    def _width(self, length: int) -> int:
        """Return to how many tokens a text of some tokens is padded when it is alone."""
        return self.max_tokens if length and self.model.config.model_type in _ALWAYS_PADDED else length

    def _pooled(self, inputs: Mapping[str, torch.Tensor], ends: torch.Tensor) -> torch.Tensor:
        """Run the model on n texts whose tokens end before `ends` (n,); returns (n, d)."""
        if self.pooling == TEXT_FEATURES:
            output = self.model.get_text_features(**inputs)
            return output if isinstance(output, torch.Tensor) else output.pooler_output
        output = _tower(self.model)(**inputs)
        if self.pooling == "pooler":
            pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
            if pooled is None:
                raise EncoderError(f'The model {self.name!r} has no pooled output of its own: use "mean" or "cls".')
            return pooled
        hidden: torch.Tensor = output.last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), ends - 1]
        inside = (torch.arange(hidden.shape[1], device=hidden.device) < ends[:, None])[:, :, None]
        return hidden.masked_fill(~inside, 0.0).sum(dim=1) / ends[:, None]


def text_encoder_from(place: str, *, pooling: str | None = None, device: str = "auto") -> TransformersTextEncoder:
    """Load a hub id, or a folder with config.json, model.safetensors and a tokenizer; see `load_text_encoder`.

    Pickled weights and code from the hub are refused.

    Raises:
        EncoderError: Nothing of that name, no safetensors weights, no tokenizer, or no text model.
    """
    if not place:
        raise EncoderError('"hf:" needs a hub id or a folder, as in "hf:emilyalsentzer/Bio_ClinicalBERT".')
    model, config = _text_model(place)
    tokenizer = _tokenizer(place)
    name = f"hf:{place}"
    encoder = TransformersTextEncoder(
        model, tokenizer, pooling=pooling, name=name, device=device, identity=_identity(config, tokenizer)
    )
    lasting = f"hf:{Path(place).absolute()}" if Path(place).is_dir() else name
    encoder.spec = lasting if encoder.pooling == TEXT_FEATURES else f"{lasting}#{encoder.pooling}"
    return encoder


def load_saved(root: Path, document: Mapping[str, Any], *, device: str = "auto") -> TransformersTextEncoder:
    """Load what `TransformersTextEncoder.save` wrote; the hashes of its files were compared before.

    Raises:
        EncoderError: The folder is not what was saved.
    """
    model, _ = _text_model(str(root))
    try:
        encoder = TransformersTextEncoder(
            model,
            _tokenizer(str(root)),
            pooling=str(document["pooling"]),
            name=str(document["name"]),
            max_tokens=document["max_tokens"],
            training=document["training"],
            device=device,
            identity=document["identity"],
        )
    except EncoderError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"The text encoder in {root} is none that was saved ({error}).") from error
    if encoder.fingerprint != document.get("fingerprint"):
        raise EncoderError(f"The text encoder in {root} is not what was saved: its description was changed.")
    encoder.spec = str(root.absolute())
    return encoder


def _text_model(place: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return a model with all its weights, a pooler without weights taken off, and its configuration."""
    model, absent, config = _load_model(place)
    if rest := sorted(key for key in absent if not key.startswith("pooler.")):
        raise EncoderError(f"The checkpoint {place!r} lacks {len(rest)} weights of its model, {rest[0]!r} first.")
    if absent:
        model.pooler = None  # type: ignore[assignment]  # random, and another one each time
    return model, config


def _tokenizer(place: str) -> Any:
    try:
        with quiet(), _silent_transformers():
            from transformers import AutoTokenizer

            load: Any = AutoTokenizer.from_pretrained
            tokenizer = load(place, local_files_only=Path(place).is_dir(), trust_remote_code=False)
    except Exception as error:  # hub, file system, missing packages and broken files have no common base
        raise EncoderError(f"The model {place!r} has no tokenizer that can be loaded: {_first_line(error)}") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise EncoderError(f"The model {place!r} has no tokenizer that can be loaded: it knows no word.")
    return tokenizer


def _identity(config: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """Return what of configuration and tokenizer counts in the fingerprint: plain JSON types."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map]
    else:
        rules = {**json.loads(backend.to_str()), "truncation": None, "padding": None}  # settings of the last call
    text = json.dumps([rules, tokenizer.truncation_side], sort_keys=True, default=str)
    kept = {key: value for key, value in config.items() if key not in _DROPPED}
    return {
        "config": json.loads(json.dumps(kept, default=str)),
        "tokenizer_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _checked_pooling(model: Any, pooling: str | None, name: str) -> str:
    features = hasattr(model, "get_text_features")
    allowed = (TEXT_FEATURES,) if features else POOLINGS
    if pooling is not None and pooling not in allowed:
        raise EncoderError(f"The pooling of {name!r} is one of {', '.join(allowed)}; got {pooling!r}.")
    return pooling or allowed[0]


def _tower(model: Any) -> Any:
    """Return the part of the model that reads: the encoder of one that also writes."""
    return model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model


def _most_tokens(model: Any, tokenizer: Any) -> int | None:
    """Return the longest text, in tokens, that both take, or None where neither says."""
    limits = [int(tokenizer.model_max_length)] if 0 < tokenizer.model_max_length <= _MOST_TOKENS else []
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(positions, int) and positions > 0:
        for key, layer in model.named_modules():  # RoBERTa and its kin count positions from behind the padding's number
            if key.endswith("position_embeddings") and getattr(layer, "padding_idx", None) is not None:
                positions -= layer.padding_idx + 1
                break
        limits.append(positions)
    return min(limits) if limits else None


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Part texts, by their numbers, into batches of like length; those without any token are in none."""
    batch: list[int] = []
    for number in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[number] > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
