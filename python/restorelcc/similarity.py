"""How alike short texts are, as the cosine of two vectors: sentence embeddings, or TF-IDF where there are none.

    TF-IDF       v_i[w] = count of word w in text i × (ln((1 + n) / (1 + n_w)) + 1),   n_w texts hold w
    embeddings   v_i = what a sentence-transformers model makes of text i
    similarity   s_ij = <v_i, v_j> / (|v_i| |v_j|)                                     float64, one row i at a time

A row of s is made when it is asked for, so memory is O(n) beside the vectors and never n². Words are runs of letters,
digits and underscores, case folded, single ones included: "5" is a whole answer in many a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .models import MissingExtraError, quiet_transformers

__all__ = ["SENTENCE_MODEL", "SIMILARITIES", "Embeddings", "Similarity", "TfIdf", "choose_similarity", "nearest"]

SIMILARITIES = ("auto", "tfidf", "embeddings")
SENTENCE_MODEL = "all-MiniLM-L6-v2"  # the one that the authors of the paper used
_WORD = re.compile(r"\w+")
_NOT_LOADED = (OSError, ValueError, RuntimeError, ImportError)


class Similarity(Protocol):
    """`name` says in words what was compared; row(i) is s_i· [n] float64."""

    name: str

    def row(self, index: int) -> NDArray[np.float64]:
        """The similarity of text `index` to every text, itself included."""
        ...


class TfIdf:
    """Word counts weighted by rarity, kept as lists of words per text and of texts per word."""

    name = "TF-IDF"

    def __init__(self, texts: Sequence[str]) -> None:
        known: dict[str, int] = {}
        counted = [Counter(_WORD.findall(text.casefold())) for text in texts]
        words = np.array([known.setdefault(w, len(known)) for c in counted for w in c], dtype=np.int64)
        counts = np.array([count for c in counted for count in c.values()], dtype=np.float64)
        self._bounds = np.concatenate([[0], np.cumsum([len(c) for c in counted], dtype=np.int64)])
        owner = np.repeat(np.arange(len(texts)), np.diff(self._bounds))
        held = np.bincount(words, minlength=len(known))
        weights = counts * (np.log((1 + len(texts)) / (1 + held)) + 1)[words]
        length = np.sqrt(np.bincount(owner, weights * weights, minlength=len(texts)))
        self._words, self._weights = words, weights / length[owner]
        order = np.argsort(words, kind="stable")
        self._texts_of, self._weights_of = owner[order], self._weights[order]
        self._bounds_of = np.concatenate([[0], np.cumsum(held)])
        self._size = len(texts)

    def row(self, index: int) -> NDArray[np.float64]:
        """s_i· [n]; summed in the order of the words of text i, so equal texts get equal bits."""
        mine = slice(self._bounds[index], self._bounds[index + 1])
        words = self._words[mine]
        first, last = self._bounds_of[words], self._bounds_of[words + 1]
        if not len(words):
            return np.zeros(self._size)
        places = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
        products = self._weights_of[places] * np.repeat(self._weights[mine], last - first)
        found: NDArray[np.float64] = np.bincount(self._texts_of[places], products, minlength=self._size).astype(float)
        return found


class Embeddings:
    """Unit vectors [n, E] of a sentence-transformers model that is on this machine; nothing is downloaded.

    Raises:
        MissingExtraError: the package is not installed.
        ValueError: the model is not on this machine, or cannot be loaded.
    """

    def __init__(self, texts: Sequence[str], model: str = SENTENCE_MODEL) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise MissingExtraError(
                "similarity by embeddings needs the package sentence-transformers, which is not installed: "
                "pip install --no-build-isolation '.[embeddings]' in the checkout, or use similarity=tfidf"
            )
        self.name = f"embeddings of {Path(model).name}"
        with quiet_transformers():
            package: Any = importlib.import_module("sentence_transformers")
            try:
                encoder = package.SentenceTransformer(model, device="cpu", local_files_only=True)
            except _NOT_LOADED as error:
                raise ValueError(
                    f"the sentence-transformers model {model} is not on this machine or cannot be loaded "
                    f"({type(error).__name__}); name the directory of one, or use similarity=tfidf"
                ) from None
            found = encoder.encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
        vectors = np.asarray(found, dtype=np.float64)
        self._unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)

    def row(self, index: int) -> NDArray[np.float64]:
        """s_i· [n]."""
        product: NDArray[np.float64] = self._unit @ self._unit[index]
        return product


def choose_similarity(texts: Sequence[str], kind: str = "auto") -> Similarity:
    """The similarity of `texts`.

    Args:
        kind: `tfidf`; `embeddings` of SENTENCE_MODEL; the directory of another sentence-transformers model; or `auto`:
            embeddings where the package is installed and the model is on this machine, else TF-IDF.

    Raises:
        MissingExtraError, ValueError: as `Embeddings`, save for `auto`; an unknown kind.
    """
    if kind == "tfidf":
        return TfIdf(texts)
    if kind == "embeddings":
        return Embeddings(texts)
    if kind == "auto":
        try:
            return Embeddings(texts)
        except (MissingExtraError, ValueError):
            return TfIdf(texts)
    if Path(kind).is_dir():
        return Embeddings(texts, kind)
    raise ValueError(
        f"unknown similarity {kind!r}; choose one of {', '.join(SIMILARITIES)}, "
        "or name the directory of a sentence-transformers model"
    )


def nearest(row: NDArray[np.float64], own: int, among: Sequence[int] | None = None) -> int | None:
    """argmax_j s_j over `among` (all by default) without `own`; None where nothing is left.

    Ties go to the next one behind `own`, going round: texts that are like no other then get different neighbours.
    Were it the first one of the file, that text would be the wrong answer of many prompts, and a probe could learn it.
    """
    size = len(row)
    candidates = np.arange(size) if among is None else np.unique(np.asarray(among, dtype=np.int64))
    candidates = candidates[candidates != own]
    if not len(candidates):
        return None
    candidates = candidates[np.argsort((candidates - own) % size, kind="stable")]
    return int(candidates[np.argmax(row[candidates])])  # argmax of numpy: the first of equal ones
