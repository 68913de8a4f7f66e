"""Documents: reading and writing texts, and the built-in corpus of natural English text.

a path, a glob, a URL, python://  ──read_documents──>  Document(id, text, meta)  ──write_documents──>  a file
                                                              │
                                 prepare_corpus: cleaned, no paragraph twice, train.jsonl + heldout/<domain>.jsonl
"""

from lingua_synth.documents.corpus import prepare_corpus
from lingua_synth.documents.document import Document, document_id
from lingua_synth.documents.locations import find_files
from lingua_synth.documents.python_corpus import python_documents
from lingua_synth.documents.reading import read_documents, write_documents
from lingua_synth.documents.rejects import Rejects

__all__ = [
    "Document",
    "Rejects",
    "document_id",
    "find_files",
    "prepare_corpus",
    "python_documents",
    "read_documents",
    "write_documents",
]
