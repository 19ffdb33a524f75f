"""NSFSE without training [O]: a dual encoder as it comes, whose words are looked for in images (docs/method.md §11).

A word is what the text encoder makes of a short prompt with it. Words and regions are centred, so that one boundary
holds for all words. Only statistics of images are fitted (nsfse.training.fit_without_labels); no weight changes.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from nsfse.config import ModelConfig
from nsfse.models.encoders import Encoders
from nsfse.models.similarity_head import PairHead, PairSimilarities, QueryEncoding
from nsfse_runtime.retrieval.negation import CUES, EMPTY, ENDS, PAIRS, words_of
from nsfse_runtime.types import RankingMode

REACH = 5
"""Words after a negation that it can exclude."""
NEGATED = 2.0
"""What is added to the length of a word that a negation excludes; other words are at most 1 long."""
LEAST_WEIGHT = 1e-3
"""The length of a word that names nothing to see."""
FAR = -1000
NOTHING_TO_SEE = words_of(
    "make change keep have has with in on of to as i want would like same similar more less please show find is are be",
    "should for at by from than something else mach mache ersetze mit wie gleich mehr ist sein soll für von",
)
"""Words of a text that no image shows, beside articles and negations."""
_UNSEEN_WORDS = CUES | ENDS | EMPTY | NOTHING_TO_SEE
_BEGINS, _FINISHES, _CUE, _END, _UNSEEN = range(5)


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> tuple[int, ...]:
    """Return the ids that come before a word, those of `prompt`."""
    return tuple(tokenizer.encode(prompt).ids) if prompt.strip() else ()


def bare(piece: str) -> str:
    """Return a piece of a vocabulary without the marks of where words begin or end."""
    return piece.removesuffix("</w>").removeprefix("▁").removeprefix("Ġ").removeprefix("##").lower()


class TokenMarks(nn.Module):
    """What is known of each token of a vocabulary: where words begin and end, negations, ends of clauses."""

    marks: Tensor
    pairs: Tensor

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.register_buffer("marks", torch.zeros(5, vocabulary, dtype=torch.bool))
        self.register_buffer("pairs", torch.full((len(PAIRS), 2), -1, dtype=torch.int64))

    def read(self, tokenizer: Tokenizer) -> None:
        """Fill both from a tokenizer: of whole words, of byte-level or other BPE, WordPiece or SentencePiece."""
        pieces = tokenizer.get_vocab()
        suffixed = any(piece.endswith("</w>") for piece in pieces)
        opened = next((mark for mark in "▁Ġ" if sum(piece.startswith(mark) for piece in pieces) > 1), "")
        for piece, number in pieces.items():
            word = bare(piece)
            self.marks[_FINISHES, number] = piece.endswith("</w>")
            begins = piece.startswith(opened) if opened else not piece.startswith("##")
            self.marks[_BEGINS, number] = begins and not suffixed
            self.marks[_CUE, number] = word in CUES
            self.marks[_END, number] = word in ENDS
            self.marks[_UNSEEN, number] = word in CUES | ENDS | EMPTY | NOTHING_TO_SEE or not any(
                map(str.isalnum, word)
            )
        for row, pair in enumerate(sorted(PAIRS)):
            ids = [tokenizer.encode(word).ids for word in pair.split("_")]
            if all(len(each) == 1 for each in ids):
                self.pairs[row] = torch.tensor([each[0] for each in ids])

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read `ids` [B, L] where `mask` [B, L].

        Returns:
            The number [B, L] of the word that each token is a piece of; which tokens [B, L] a negation excludes; which
            [B, L] name something to see.
        """
        begins, finishes, cue, end, unseen = self.marks[:, ids].unbind(0)
        before = F.pad(ids, (1, 0), value=-2)[:, :-1]
        cue = cue | ((before[..., None] == self.pairs[:, 0]) & (ids[..., None] == self.pairs[:, 1])).any(-1)
        first = begins | F.pad(finishes, (1, 0))[:, :-1]
        place = torch.arange(ids.shape[1], device=ids.device)
        earlier = place[None] < place[:, None]
        last_cue, last_end = (
            torch.where(found[:, None] & earlier, place, FAR).amax(-1) for found in (cue & mask, end & mask)
        )
        excluded = (last_cue > last_end) & (place - last_cue <= REACH)
        return first.long().cumsum(1), excluded, mask & ~unseen & ~cue


class WordSpace(nn.Module):
    """Unit words and regions [..., d], each less the mean of its kind: encoders put the two kinds apart."""

    word_mean: Tensor
    region_mean: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("word_mean", torch.zeros(dim))
        self.register_buffer("region_mean", torch.zeros(dim))

    def words(self, words: Tensor) -> Tensor:
        """Return unit rows of `words` [..., d]."""
        return F.normalize(words - self.word_mean, dim=-1)

    def regions(self, regions: Tensor) -> Tensor:
        """Return unit rows of `regions` [..., d]."""
        return F.normalize(regions - self.region_mean, dim=-1)


class WordHead(PairHead):
    """The pair head of words that are not trained: S has no visual branch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.add_boundaries(config)
        self.global_tokens = 0

    def correspond(
        self, query: QueryEncoding, across: Tensor, near: Tensor, view: Tensor, gram: Tensor
    ) -> PairSimilarities:
        """Set S_v to 0. It is not left out: a graph of the head keeps all its inputs."""
        pair = super().correspond(query, across, near, view, gram)
        return replace(pair, visual=0.0 * pair.visual)

    @torch.no_grad()
    def fusion_weights(self) -> Tensor:
        """Return ω_g, ω_c and 0."""
        return super().fusion_weights() * torch.tensor([1.0, 1.0, 0.0], device=self.mix.device)


class TrainingFree(Encoders):
    """A dual encoder with word evidence: stage 1 composes by `method`, stage 2 adds the words' similarity."""

    mode = RankingMode.TWO_STAGE
    blocks = None

    def __init__(self, config: ModelConfig, vocabulary: int, method: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(config, vocabulary)
        self.method, self.head = method, WordHead(config)
        self.marks, self.space = TokenMarks(vocabulary), WordSpace(config.dim)

    def _image_outputs(self, vectors: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors [B, d] and the regions [B, R, d] of the words' space, or the vector there, R = 1."""
        return vectors, self.space.regions(vectors[:, None] if self.config.evidence == "whole" else regions)

    def encode_text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts.

        Args:
            ids: Token ids [B, L].
            mask: True [B, L] where there is a token.

        Returns:
            Words [B, L, d], whose length is what they weigh, plus NEGATED for an excluded one, and unit sentences.
        """
        _, sentence = self.text_encoder(ids, mask)
        word, excluded, seen = self.marks(ids, mask)
        same = (word[:, :, None] == word[:, None]) & mask[:, None] & mask[..., None]
        pieces = same.sum(-1)
        words = self.space.words(self.prompted(ids, same))
        lengths = torch.where(seen, 1.0 / pieces.clamp_min(1), LEAST_WEIGHT) + NEGATED * (excluded & seen)
        return words * (lengths * mask)[..., None], sentence

    def prompted(self, ids: Tensor, same: Tensor) -> Tensor:
        """Return the sentence [B, L, d] of each token's word after the prompt; `same` [B, L, L] are its pieces."""
        length, before = ids.shape[1], torch.tensor(self.config.evidence_prompt, device=ids.device, dtype=ids.dtype)
        place = torch.arange(length, device=ids.device)
        start = torch.where(same, place, length).amin(-1).clamp_max(length - 1)
        at = (start[..., None] + place).clamp_max(length - 1)
        pieces = ids[:, None].expand(-1, length, -1).gather(2, at).flatten(0, 1)
        filled = (place < same.sum(-1).clamp_min(1)[..., None]).flatten(0, 1)
        prompts = torch.cat([before.expand(pieces.shape[0], -1), pieces], 1)
        read = torch.cat([torch.ones_like(prompts[:, : before.shape[0]], dtype=torch.bool), filled], 1)
        sentences: Tensor = self.text_encoder(prompts, read)[1]
        return sentences.reshape(ids.shape[0], length, -1)

    def compose(
        self, vectors: Tensor, regions: Tensor, words: Tensor, sentence: Tensor, mask: Tensor
    ) -> tuple[Tensor, QueryEncoding]:
        """Compose references with texts; shapes as in NSFSE.compose. The probes are the reference's own regions."""
        lengths = words.norm(dim=-1)
        excluded = lengths >= NEGATED
        weights = torch.where(excluded, NEGATED - lengths, lengths)
        weights = weights / weights.abs().sum(1, keepdim=True).clamp_min(1e-6)
        unit = F.normalize(words, dim=-1) * mask[..., None]
        probes = torch.cat([regions, unit], 1)
        return self.method(vectors, sentence), QueryEncoding(unit, probes, weights, 0.0 * probes[..., 0], mask)

    def total(self, queries: Tensor, vectors: Tensor, pair: PairSimilarities) -> Tensor:
        """Return S [B, M] of `queries` [B, d] with M candidates each, their `vectors` [B, M, d]."""
        return self.head.total(torch.einsum("bd,bmd->bm", queries, vectors), pair)

    def word_scores(self, _words: Tensor, _vectors: Tensor, pair: PairSimilarities) -> Tensor:
        """Return x [B, M, L] for the evidence."""
        return pair.x
