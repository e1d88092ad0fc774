"""How much a student's rationales share with the teacher's and with their inputs. Imports no jax.

Overlap says how close a rationale is to one text, not whether it is right: rationales of one template overlap whatever
their numbers are. The quartiles of the examples stand beside every mean, which hides rationales that fail entirely.
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cotmi_jax.evaluation.comparison import mean_by_cluster
from cotmi_jax.evaluation.confidences import cluster_numbers
from cotmi_jax.evaluation.scores import NotAvailable, Prediction, Score, share_by_cluster

DEFAULT_ENCODER = "wordllama"  # static token embeddings of 256 dimensions, in the package's own files
COPIED = (1, 4)  # words of the n-grams whose share is reported
_DRAWS = 1000  # bootstrap samples of clusters, for the interval of BLEU
_BATCH = 64  # texts that a transformers encoder encodes at a time
_MAX_TOKENS = 512  # of a text for a transformers encoder, which has no positions beyond
_WORD = re.compile(r"\w+(?:\.\d+)?|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class _Texts:
    """Rationales of the student and of the teacher, with the cluster of each example."""

    own: list[str]
    teacher: list[str]
    cluster_N: np.ndarray


def rationale_overlap(predictions: Sequence[Prediction], encoder: str = DEFAULT_ENCODER) -> dict[str, Any]:
    """Means over examples with intervals that take clusters of examples as independent, and quartiles.

    Against the teacher's rationale, of the examples that have one: `bleu`, of the corpus, in percent, by sacreBLEU,
    whose signature is in `settings`, with a bootstrap interval and the quartiles of sentences; `rouge_l`, the F measure
    of the longest common subsequence of words (Lin 2004), in [0, 1]; `cosine` of sentence embeddings, in [−1, 1].
    Of the rationale alone: `rationale_words`, words and signs; `copied_1grams` and `copied_4grams`, the share of its
    n-grams of words that occur in the input, of rationales that have any; `empty_rationales`, a share. The overlaps and
    the cosine of an empty rationale are 0.

    encoder: wordllama, or the name or folder of a transformers encoder, whose last states are averaged over tokens.
    Values that need a package that is not installed are replaced by the reason. Nothing for predictions without
    rationales.
    """
    explained = [each for each in predictions if each["predicted_rationale"] is not None]
    if not explained:
        return {}
    own = [(each["predicted_rationale"] or "").strip() for each in explained]
    cluster_N = cluster_numbers(explained)
    taught = [row for row, each in enumerate(explained) if (each["teacher_rationale"] or "").strip()]
    scores: dict[str, Any] = {}
    if taught:
        teacher = [str(explained[row]["teacher_rationale"]).strip() for row in taught]
        texts = _Texts([own[row] for row in taught], teacher, cluster_N[taught])
        for name, function in (("bleu", _bleu), ("rouge_l", _rouge), ("cosine", functools.partial(_cosine, encoder))):
            scores[name] = function(texts)
    words = [_words(text) for text in own]
    scores["rationale_words"] = _mean([len(each) for each in words], cluster_N)
    inputs = [_words(each["input"]) for each in explained]
    for size in COPIED:
        shares = [_copied(text, source, size) for text, source in zip(words, inputs, strict=True)]
        rows = [row for row, share in enumerate(shares) if share is not None]
        if rows:
            scores[f"copied_{size}grams"] = _mean([shares[row] or 0.0 for row in rows], cluster_N[rows])
    scores["empty_rationales"] = share_by_cluster([not text for text in own], cluster_N.tolist())
    return scores


def _words(text: str) -> list[str]:
    """Words, numbers and signs, in lower case."""
    return _WORD.findall(text.casefold())


def _copied(words: Sequence[str], source: Sequence[str], size: int) -> float | None:
    """The share of the n-grams of words that the source holds; None if there are none."""
    grams, known = ([tuple(text[i : i + size]) for i in range(len(text) - size + 1)] for text in (words, source))
    seen = set(known)
    return sum(gram in seen for gram in grams) / len(grams) if grams else None


def _mean(values: Sequence[float], cluster_N: np.ndarray, settings: str = "") -> Score:
    """The mean over examples with its interval, and the quartiles."""
    value_N = np.asarray(values, np.float64)
    score = mean_by_cluster(value_N, cluster_N)
    score["quartiles"] = _quartiles(value_N)
    if settings:
        score["settings"] = settings
    return score


def _quartiles(value_N: np.ndarray) -> tuple[float, float, float]:
    low, median, high = np.quantile(value_N, (0.25, 0.5, 0.75))
    return float(low), float(median), float(high)


def _needs(package: str, extra: str = "quality") -> NotAvailable | None:
    """The reason why a package cannot be used; None: it is installed."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        remedy = f"pip install -e '.[{extra}]' (in the repository)"
        return NotAvailable(not_available=f"the extra {extra} is not installed: {remedy}")
    return None


def _bleu(texts: _Texts) -> Score | NotAvailable:
    if reason := _needs("sacrebleu"):
        return reason
    from sacrebleu.metrics import BLEU

    of_sentence, of_corpus = BLEU(effective_order=True), BLEU()
    found = [of_sentence.sentence_score(own, [teacher]) for own, teacher in zip(texts.own, texts.teacher, strict=True)]
    corpus = of_corpus.corpus_score(texts.own, [texts.teacher])
    # Counts of n-grams in common and of all, then both lengths: sums of them give the BLEU of any set of sentences.
    count_NxC = np.array([[*each.counts, *each.totals, each.sys_len, each.ref_len] for each in found])
    number_N = np.unique(texts.cluster_N, return_inverse=True)[1]
    count_GxC = np.stack([np.bincount(number_N, weights=column) for column in count_NxC.T], axis=1)
    draw, drawn = np.random.default_rng(0), []
    for _ in range(_DRAWS if len(count_GxC) > 1 else 0):
        total_C = count_GxC[draw.integers(0, len(count_GxC), len(count_GxC))].sum(axis=0).astype(int).tolist()
        drawn.append(BLEU.compute_bleu(total_C[:4], total_C[4:8], total_C[8], total_C[9]).score)
    low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (0.0, 0.0)
    return Score(
        value=float(corpus.score),
        interval=(float(low), float(high)) if drawn else None,
        n=len(found),
        quartiles=_quartiles(np.array([each.score for each in found])),
        settings=str(of_corpus.get_signature()),
    )


def _rouge(texts: _Texts) -> Score | NotAvailable:
    if reason := _needs("rouge_score"):
        return reason
    from rouge_score import rouge_scorer, tokenizers

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=tokenizers.DefaultTokenizer(use_stemmer=False))
    values = [
        scorer.score(teacher, own)["rougeL"].fmeasure for own, teacher in zip(texts.own, texts.teacher, strict=True)
    ]
    version = importlib.metadata.version("rouge-score")
    return _mean(values, texts.cluster_N, f"rouge-score {version}, rougeL, F measure, no stemmer")


def _cosine(encoder: str, texts: _Texts) -> Score | NotAvailable:
    loaded = _load_wordllama() if encoder == DEFAULT_ENCODER else _load_transformers(encoder)
    if not callable(loaded):
        return loaded
    rows = [row for row, own in enumerate(texts.own) if own]
    cosine_N = np.zeros(len(texts.own))
    if rows:
        both = [_normalized(loaded([side[row] for row in rows])) for side in (texts.own, texts.teacher)]
        cosine_N[rows] = (both[0] * both[1]).sum(axis=1)
    return _mean(cosine_N.tolist(), texts.cluster_N, _encoder_name(encoder))


def _encoder_name(encoder: str) -> str:
    return f"{encoder} {importlib.metadata.version(encoder)}" if encoder == DEFAULT_ENCODER else encoder


def _normalized(vector_NxD: np.ndarray) -> np.ndarray:
    """Rows of norm 1; a text without tokens keeps its zeros."""
    norm_Nx1 = np.linalg.norm(vector_NxD, axis=1, keepdims=True)
    return vector_NxD / np.where(norm_Nx1 == 0, 1.0, norm_Nx1)


Encoder = Callable[[list[str]], np.ndarray]  # texts → one vector each


def _load_wordllama() -> Encoder | NotAvailable:
    if reason := _needs("wordllama"):
        return reason
    from pathlib import Path

    import wordllama

    # The package looks for its tokenizer in a folder `tokenizer`, and ships it in `tokenizers`, as in a cache: so its
    # own folder is given as the cache, without which it would download the file.
    folder = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    return lambda texts: np.asarray(model.embed(texts, norm=False), np.float64)


def _load_transformers(name: str) -> Encoder | NotAvailable:
    if reason := _needs("torch", "torch"):
        return reason
    import torch
    from transformers import AutoModel, AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)  # notes on heads that a sentence encoder does not use
    try:
        tokenizer, model = AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        return NotAvailable(not_available=f"encoder {name}: {first}")
    encode = model.get_encoder() if model.config.is_encoder_decoder else model

    def vectors(texts: list[str]) -> np.ndarray:
        found = []
        for start in range(0, len(texts), _BATCH):
            chunk = texts[start : start + _BATCH]
            tokens = tokenizer(chunk, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
            with torch.no_grad():
                inputs: Mapping[str, Any] = {key: tokens[key] for key in ("input_ids", "attention_mask")}
                state_BxTxD = encode(**inputs).last_hidden_state
            mask_BxTx1 = tokens["attention_mask"][..., None]
            found.append(((state_BxTxD * mask_BxTx1).sum(1) / mask_BxTx1.sum(1)).numpy())
        return np.concatenate(found).astype(np.float64)

    return vectors
