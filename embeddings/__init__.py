"""Images to vectors, and vectors to neighbours: reading, encoding, and the archive that keeps what was encoded.

Names resolve when first used, so that importing this package imports neither torch nor faiss.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .archive import AddReport, Archive, Snapshot, VerifyReport
    from .backbone_names import BACKBONES
    from .backbones import build_backbone
    from .classical import HogEncoder, PixelEncoder
    from .encoders import Encoder, ImageLoader, load_encoder
    from .errors import (
        ArchiveCorrupt,
        ArchiveError,
        ArchiveLocked,
        EncoderError,
        EncoderMismatch,
        ImageError,
        SourceError,
        StorageFull,
        UnknownColumn,
        UnknownEncoder,
        UnknownId,
    )
    from .images import DEFAULT_MAX_PIXELS, ImageIdentity, ImageSource, image_identity, read_image
    from .index import Index, SearchResult
    from .ingest import IngestReport, embed_archive
    from .precomputed import PrecomputedEncoder
    from .preprocess import Preprocess
    from .reembedding import ReembedReport, reembed_archive
    from .similarity import SimilarityHead
    from .source_statistics import SourceStatistics
    from .sources import Record, printable, records_from_folder, records_from_table
    from .torch_encoder import TorchEncoder, load_checkpoint
    from .transformers_backbone import trainable_from
    from .transformers_encoder import TransformersEncoder

# Each public name and the module that holds it; a module is imported when one of its names is first asked for.
_HOMES = {
    "BACKBONES": "backbone_names",
    "DEFAULT_MAX_PIXELS": "images",
    "AddReport": "archive",
    "Archive": "archive",
    "ArchiveCorrupt": "errors",
    "ArchiveError": "errors",
    "ArchiveLocked": "errors",
    "Encoder": "encoders",
    "EncoderError": "errors",
    "EncoderMismatch": "errors",
    "HogEncoder": "classical",
    "ImageError": "errors",
    "ImageIdentity": "images",
    "ImageLoader": "encoders",
    "ImageSource": "images",
    "Index": "index",
    "IngestReport": "ingest",
    "PixelEncoder": "classical",
    "PrecomputedEncoder": "precomputed",
    "Preprocess": "preprocess",
    "Record": "sources",
    "ReembedReport": "reembedding",
    "SearchResult": "index",
    "SimilarityHead": "similarity",
    "Snapshot": "archive",
    "SourceError": "errors",
    "SourceStatistics": "source_statistics",
    "StorageFull": "errors",
    "TorchEncoder": "torch_encoder",
    "TransformersEncoder": "transformers_encoder",
    "UnknownColumn": "errors",
    "UnknownEncoder": "errors",
    "UnknownId": "errors",
    "VerifyReport": "archive",
    "build_backbone": "backbones",
    "embed_archive": "ingest",
    "image_identity": "images",
    "load_checkpoint": "torch_encoder",
    "load_encoder": "encoders",
    "printable": "sources",
    "read_image": "images",
    "records_from_folder": "sources",
    "records_from_table": "sources",
    "reembed_archive": "reembedding",
    "trainable_from": "transformers_backbone",
}

# Other distributions install a package of this name too; fewshot and zeroshot look here before they rely on it.
__distribution__ = "radshot"

__all__ = [
    "BACKBONES",
    "DEFAULT_MAX_PIXELS",
    "AddReport",
    "Archive",
    "ArchiveCorrupt",
    "ArchiveError",
    "ArchiveLocked",
    "Encoder",
    "EncoderError",
    "EncoderMismatch",
    "HogEncoder",
    "ImageError",
    "ImageIdentity",
    "ImageLoader",
    "ImageSource",
    "Index",
    "IngestReport",
    "PixelEncoder",
    "PrecomputedEncoder",
    "Preprocess",
    "Record",
    "ReembedReport",
    "SearchResult",
    "SimilarityHead",
    "Snapshot",
    "SourceError",
    "SourceStatistics",
    "StorageFull",
    "TorchEncoder",
    "TransformersEncoder",
    "UnknownColumn",
    "UnknownEncoder",
    "UnknownId",
    "VerifyReport",
    "build_backbone",
    "embed_archive",
    "image_identity",
    "load_checkpoint",
    "load_encoder",
    "printable",
    "read_image",
    "records_from_folder",
    "records_from_table",
    "reembed_archive",
    "trainable_from",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds `name`, once, and hand the name on."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, resolved or not."""
    return sorted({*globals(), *__all__})
