"""What the commands about words share: descriptions by name or file, models, texts of a manifest, vectors of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import Refused, Usage, list_refused, note

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from embeddings import Encoder, TextEncoder
    from episodes import Manifest
    from zeroshot import Prompts, ZeroShotModel

DESCRIBE_HELP = (
    "What the classes look like: a TOML file (a table per class with sentences and terms), or a built-in set: "
    "chestxray14, phantoms, anatomy, locations, modality."
)
Describe = Annotated[str, typer.Option("--describe", metavar="FILE|NAME", help=DESCRIBE_HELP, show_default=False)]
Texts = Annotated[
    list[str],
    typer.Option("--text", metavar="COLUMN", help="Text column; repeat it to join several.", show_default=False),
]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Folder made by radshot zeroshot fit.", show_default=False)
]


@dataclass(frozen=True, eq=False)
class WithTexts:
    """Images of manifests that could be read, with their words.

    Attributes:
        vectors: float32 (n, p).
        images: Their paths.
        texts: Text of each; "" where there is none.
        labels: Label of each (a text, or a tuple of texts), or None where no column was named.
        groups: Patient of each, or None where unknown.
        refused: (image, reason) of those that could not be read.
    """

    vectors: NDArray[np.float32]
    images: list[Path]
    texts: list[str]
    labels: list[Any] | None
    groups: list[str] | None
    refused: list[tuple[str, str]]


def descriptions_of(named: str) -> dict[str, Prompts]:
    """Descriptions of a built-in set or of a file.

    Raises:
        Usage: It is neither.
    """
    from zeroshot import built_in_descriptions, read_descriptions
    from zeroshot.prompts import BUILT_IN

    if named in BUILT_IN:
        return built_in_descriptions(named)
    if not Path(named).exists():
        raise Usage(f"--describe names a TOML file or a built-in set ({', '.join(BUILT_IN)}); '{named}' is neither.")
    return read_descriptions(named)


def is_built_in(named: str) -> bool:
    """Whether descriptions are a built-in set, of which classes may be left out that no report speaks of."""
    from zeroshot.prompts import BUILT_IN

    return named in BUILT_IN


def open_model(folder: Path, encoder: str | None) -> tuple[ZeroShotModel, Encoder]:
    """A model and the image encoder it was aligned with.

    Raises:
        Refused: The encoder is no longer where it was.
        EncoderMismatch: What is there now is another encoder.
    """
    from embeddings import EncoderError
    from zeroshot import ZeroShotModel

    from .inputs import open_encoder

    model = ZeroShotModel.load(folder)
    spec = encoder or model.facts.get("encoder_spec")
    if not spec:
        raise Refused(f"'{folder}' does not know where its image encoder is: name it with --encoder.")
    try:
        found = open_encoder(str(spec))
    except EncoderError as error:
        if encoder is not None:
            raise
        raise Refused(
            f"The image encoder of '{folder}' cannot be loaded from {spec}: name it with --encoder ({error})"
        ) from None
    model.check_encoder(found)
    return model, found


def read_with_texts(
    manifests: Sequence[Path],
    encoder: Encoder,
    *,
    text: Sequence[str],
    label: str | None,
    group: str | None,
    where: str | None,
    image: str,
) -> WithTexts:
    """Read manifests with their texts, and embed the images.

    Args:
        manifests: Tables.
        encoder: Embeds the images.
        text: Text columns; several are joined.
        label: Label column, or None.
        group: Patient column; None guesses, "none" for none.
        where: A condition.
        image: Column of image paths.

    Raises:
        Usage: A text column is missing.
        Refused: No image can be read.
    """
    from .inputs import encode_readable, read_manifests

    source = read_manifests(manifests, labels=None if label is None else [label], group=group, where=where, image=image)
    texts: list[str] = []
    for manifest in source.manifests:
        texts += _joined(manifest, text) if text else []
    texts = texts or [""] * len(source.images)
    vectors, kept, refused = encode_readable(encoder, source.images)
    list_refused(refused)
    if not kept:
        raise Refused(f"None of the {len(source.images):,} images could be read.")
    return WithTexts(
        vectors=vectors,
        images=[source.images[i] for i in kept],
        texts=[texts[i] for i in kept],
        labels=None if label is None else [source.labels[i] for i in kept],
        groups=None if source.groups is None else [source.groups[i] for i in kept],
        refused=refused,
    )


def read_texts(
    manifests: Sequence[Path], *, text: Sequence[str], group: str | None, where: str | None, image: str
) -> WithTexts:
    """Read the texts of every row, whether its image is there, and whether others have the same, or not.

    Args:
        manifests: Tables.
        text: Text columns; several are joined.
        group: Patient column; None guesses, "none" for none.
        where: A condition.
        image: Column of what the rows are called.

    Raises:
        Usage: A text column is missing.
    """
    import numpy as np

    from episodes import Manifest

    from .inputs import patient_column

    images: list[Path] = []
    texts: list[str] = []
    groups: list[str] | None = []
    for path in manifests:
        bare = Manifest.read(path, label=None, group=None, image=image, where=where)
        column = patient_column(bare) if group is None else None if group == "none" else group
        images += bare.images
        texts += _joined(bare, text)
        owners = (
            None if column is None else Manifest(bare.table, bare.folder, label=None, group=column, image=image).groups
        )
        groups = None if owners is None or groups is None else [*groups, *owners]
    return WithTexts(np.empty((len(images), 0), dtype=np.float32), images, texts, None, groups, [])


def _joined(manifest: Manifest, text: Sequence[str]) -> list[str]:
    """The text of each row, several columns joined.

    Raises:
        Usage: A column is missing.
    """
    missing = [name for name in text if name not in manifest.table.columns]
    if missing:
        columns = ", ".join(map(str, manifest.table.columns))
        raise Usage(f"{manifest.source} has no column {missing[0]!r}; it has {columns}.")
    rows = manifest.table[list(text)].fillna("").astype(str).to_numpy().tolist()
    return [". ".join(cell.strip() for cell in row if cell.strip()) for row in rows]


def text_encoder_of(named: str, texts: Sequence[str], *, seed: int) -> TextEncoder:
    """A text encoder: fitted here (tfidf, bert), or loaded (`hf:...`, a folder)."""
    from embeddings import TfidfTextEncoder, load_text_encoder, train_text_encoder

    from .inputs import lasting_spec

    told = [text for text in texts if text.strip()]
    if not told:
        raise Refused("None of the images has a text: name the column with --text.")
    if named == "tfidf":
        return TfidfTextEncoder(seed=seed).fit(told)
    if named == "bert":
        note(f"training a small BERT on {len(told):,} texts")
        return train_text_encoder(told, seed=seed)
    return load_text_encoder(lasting_spec(named))


def as_words(model: ZeroShotModel, descriptions: dict[str, Prompts], *, leave_out: bool = False) -> Any:
    """What descriptions say about where images lie, as a comparison set keeps it; remarks go to the user."""
    import numpy as np

    from fewshot import ClassPrior, Words, WordsWorth

    space = model.space(descriptions, leave_out=leave_out)
    for remark in space.remarks:
        note(remark)
    return Words(
        priors={name: ClassPrior(*prior) for name, prior in model.image_priors(space).items()},
        prior_shots=WordsWorth(**worth) if (worth := model.facts.get("worth")) else model.prior_shots,
        center=model.to_image.image_mean.astype(np.float32),
        encoder=model.encoder,
    )
