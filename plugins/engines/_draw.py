"""A token from the distribution that a sampling asks for, and its log-probability under exactly that distribution."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from unified import Sampling

#: tokens that are added up together; the token is looked for in the sums first
BLOCK = 128
#: likeliest tokens that top-p looks at first; the whole vocabulary is sorted only where they hold too little
LIKELY = 512


def draw(logits: Tensor, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor]:
    """A token for each row, and its log-probability.

    Args:
        logits: [rows, vocab], not changed.
        sampling: temperature 0 takes the likeliest token, whose log-probability is 0: it is certain.
        noise: [rows] float64 in [0, 1); the token is the one at this place of the distribution's cumulative sum.
    Returns:
        [rows] tokens, and [rows] nats, float64 where the logits are, else float32; nan for a row of logits that are
        no numbers.
    """
    if sampling.temperature == 0:
        best = logits.max(-1)
        return best.indices, torch.zeros_like(best.values).masked_fill_(best.values.isnan(), torch.nan)
    z = processed(logits, sampling)
    peak = z.amax(-1, keepdim=True)
    p = (z - peak).exp_()  # [rows, vocab], not normalised; the likeliest has 1
    token, total = _at(p, noise)
    logp = (z.gather(1, token[:, None]) - peak)[:, 0] - total.log().to(z.dtype)
    return token, logp


def processed(logits: Tensor, sampling: Sampling) -> Tensor:
    """[rows, vocab]: logits of the distribution that is sampled from, −inf for tokens that are left out.

    In this order: the temperature divides, top_k keeps so many, top_p of these the fewest that hold so much, min_p of
    these those of at least so many times the probability of the likeliest. Tokens as likely as the last one that is
    kept are kept with it, so that the order of the vocabulary has no say.
    """
    z = logits if logits.dtype == torch.float64 else logits.float()
    if sampling.temperature != 1:
        z = z / sampling.temperature
    if 0 < sampling.top_k < z.shape[-1]:
        z = z.masked_fill(z < z.topk(sampling.top_k).values[:, -1:], -math.inf)
    if sampling.top_p < 1:
        z = z.masked_fill(z < _least_of_nucleus(z, sampling.top_p), -math.inf)
    if sampling.min_p > 0:
        z = z.masked_fill(z < z.amax(-1, keepdim=True) + math.log(sampling.min_p), -math.inf)
    return z


def _least_of_nucleus(z: Tensor, mass: float) -> Tensor:
    """[rows, 1]: the lowest logit among the fewest tokens that hold the mass."""
    whole = z.logsumexp(-1, keepdim=True)
    for number in (min(LIKELY, z.shape[-1]), z.shape[-1]):
        best = z.topk(number).values  # [rows, number], falling
        held = (best - whole).exp().cumsum(-1, dtype=torch.float64)
        if number == z.shape[-1] or bool((held[:, -1] >= mass).all()):
            break
    kept = (held < mass).sum(-1, keepdim=True).clamp(max=number - 1)  # the first that reaches the mass is kept
    return best.gather(1, kept)


def _at(p: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The first token of each row at which the cumulative sum of p passes noise · total; and total, [rows] float64."""
    rows, vocab = p.shape
    if vocab % BLOCK:
        p = F.pad(p, (0, -vocab % BLOCK))
    blocks = p.view(rows, -1, BLOCK)
    sums = blocks.sum(-1).double()  # [rows, blocks]
    passed = sums.cumsum(-1)
    total = passed[:, -1]
    place = torch.minimum(noise * total, torch.nextafter(total, torch.zeros_like(total)))  # [rows], below the total
    block = torch.searchsorted(passed, place[:, None], right=True)  # [rows, 1], one whose sum is not 0
    block = block.clamp(max=sums.shape[1] - 1)  # beyond the last where p is no number
    rest = (place[:, None] - passed.gather(1, block) + sums.gather(1, block)).clamp(min=0)
    inside = blocks[torch.arange(rows, device=p.device), block[:, 0]]  # [rows, BLOCK]
    within = torch.searchsorted(inside.double().cumsum(-1), rest, right=True)
    last = BLOCK - 1 - (inside.flip(-1) > 0).int().argmax(-1, keepdim=True)  # where rounding leads beyond the block
    return (block * BLOCK + torch.minimum(within, last))[:, 0].clamp(max=vocab - 1), total
