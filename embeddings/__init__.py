"""Images to vectors, and vectors to neighbours: reading, encoding, and the archive that keeps what was encoded.

Names resolve when first used, so that importing this package imports neither torch nor faiss.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .archive import AddReport, Archive, Snapshot, VerifyReport
    from .augmentation import NO_AUGMENTATION, STRONG_AUGMENTATION, Augmentation
    from .backbone_names import BACKBONES
    from .backbones import build_backbone
    from .classical import HogEncoder, PixelEncoder
    from .decoding import DecodingLimits
    from .deidentification import Deidentifier
    from .dicomdir import records_from_dicomdir
    from .encoders import Encoder, ImageLoader, load_encoder
    from .errors import (
        ArchiveCorrupt,
        ArchiveError,
        ArchiveLocked,
        DecoderUnavailable,
        EncoderError,
        EncoderMismatch,
        ImageError,
        SourceError,
        StorageFull,
        UnknownColumn,
        UnknownEncoder,
        UnknownId,
    )
    from .export import export_encoder
    from .exported_encoder import ExportedEncoder
    from .image_warnings import WARNINGS
    from .images import DEFAULT_MAX_PIXELS, ImageIdentity, ImageSource, image_identity, read_image
    from .index import Index, SearchResult
    from .ingest import IngestReport, embed_archive
    from .language_model import train_text_encoder
    from .large_search import Selection
    from .precision import PrecisionReport, faster
    from .precomputed import PrecomputedEncoder
    from .preprocess import Preprocess
    from .reembedding import ReembedReport, reembed_archive
    from .scanning import Scanned, scan
    from .search_limits import SearchLimits
    from .similarity import SimilarityHead
    from .source_statistics import SourceStatistics
    from .sources import Record, printable, records_from_folder, records_from_table
    from .text import TextEncoder, load_text_encoder
    from .tfidf import TfidfTextEncoder
    from .torch_encoder import TorchEncoder, load_checkpoint
    from .transformers_backbone import trainable_from
    from .transformers_encoder import TransformersEncoder
    from .transformers_text import TransformersTextEncoder
    from .volume_encoder import VolumeEncoder
    from .volume_ingest import embed_volumes
    from .volume_pictures import encode_volume
    from .volume_sources import find_volumes
    from .windows import WINDOWS, parse_window

# Each public name and the module that holds it; a module is imported when one of its names is first asked for.
_HOMES = {
    "BACKBONES": "backbone_names",
    "DEFAULT_MAX_PIXELS": "images",
    "NO_AUGMENTATION": "augmentation",
    "STRONG_AUGMENTATION": "augmentation",
    "WARNINGS": "image_warnings",
    "WINDOWS": "windows",
    "AddReport": "archive",
    "Archive": "archive",
    "ArchiveCorrupt": "errors",
    "ArchiveError": "errors",
    "ArchiveLocked": "errors",
    "Augmentation": "augmentation",
    "DecoderUnavailable": "errors",
    "DecodingLimits": "decoding",
    "Deidentifier": "deidentification",
    "Encoder": "encoders",
    "EncoderError": "errors",
    "EncoderMismatch": "errors",
    "ExportedEncoder": "exported_encoder",
    "HogEncoder": "classical",
    "ImageError": "errors",
    "ImageIdentity": "images",
    "ImageLoader": "encoders",
    "ImageSource": "images",
    "Index": "index",
    "IngestReport": "ingest",
    "PixelEncoder": "classical",
    "PrecisionReport": "precision",
    "PrecomputedEncoder": "precomputed",
    "Preprocess": "preprocess",
    "Record": "sources",
    "ReembedReport": "reembedding",
    "Scanned": "scanning",
    "SearchLimits": "search_limits",
    "SearchResult": "index",
    "Selection": "large_search",
    "SimilarityHead": "similarity",
    "Snapshot": "archive",
    "SourceError": "errors",
    "SourceStatistics": "source_statistics",
    "StorageFull": "errors",
    "TextEncoder": "text",
    "TfidfTextEncoder": "tfidf",
    "TorchEncoder": "torch_encoder",
    "TransformersEncoder": "transformers_encoder",
    "TransformersTextEncoder": "transformers_text",
    "UnknownColumn": "errors",
    "UnknownEncoder": "errors",
    "UnknownId": "errors",
    "VerifyReport": "archive",
    "VolumeEncoder": "volume_encoder",
    "build_backbone": "backbones",
    "embed_archive": "ingest",
    "embed_volumes": "volume_ingest",
    "encode_volume": "volume_pictures",
    "export_encoder": "export",
    "faster": "precision",
    "find_volumes": "volume_sources",
    "image_identity": "images",
    "load_checkpoint": "torch_encoder",
    "load_encoder": "encoders",
    "load_text_encoder": "text",
    "parse_window": "windows",
    "printable": "sources",
    "read_image": "images",
    "records_from_dicomdir": "dicomdir",
    "records_from_folder": "sources",
    "records_from_table": "sources",
    "reembed_archive": "reembedding",
    "scan": "scanning",
    "train_text_encoder": "language_model",
    "trainable_from": "transformers_backbone",
}

# Other distributions install a package of this name too; fewshot and zeroshot look here before they rely on it.
__distribution__ = "radshot"

__all__ = [
    "BACKBONES",
    "DEFAULT_MAX_PIXELS",
    "NO_AUGMENTATION",
    "STRONG_AUGMENTATION",
    "WARNINGS",
    "WINDOWS",
    "AddReport",
    "Archive",
    "ArchiveCorrupt",
    "ArchiveError",
    "ArchiveLocked",
    "Augmentation",
    "DecoderUnavailable",
    "DecodingLimits",
    "Deidentifier",
    "Encoder",
    "EncoderError",
    "EncoderMismatch",
    "ExportedEncoder",
    "HogEncoder",
    "ImageError",
    "ImageIdentity",
    "ImageLoader",
    "ImageSource",
    "Index",
    "IngestReport",
    "PixelEncoder",
    "PrecisionReport",
    "PrecomputedEncoder",
    "Preprocess",
    "Record",
    "ReembedReport",
    "Scanned",
    "SearchLimits",
    "SearchResult",
    "Selection",
    "SimilarityHead",
    "Snapshot",
    "SourceError",
    "SourceStatistics",
    "StorageFull",
    "TextEncoder",
    "TfidfTextEncoder",
    "TorchEncoder",
    "TransformersEncoder",
    "TransformersTextEncoder",
    "UnknownColumn",
    "UnknownEncoder",
    "UnknownId",
    "VerifyReport",
    "VolumeEncoder",
    "build_backbone",
    "embed_archive",
    "embed_volumes",
    "encode_volume",
    "export_encoder",
    "faster",
    "find_volumes",
    "image_identity",
    "load_checkpoint",
    "load_encoder",
    "load_text_encoder",
    "parse_window",
    "printable",
    "read_image",
    "records_from_dicomdir",
    "records_from_folder",
    "records_from_table",
    "reembed_archive",
    "scan",
    "train_text_encoder",
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
