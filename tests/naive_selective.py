"""Selective classification written out from its definitions with plain loops, ties by averaging over all orders."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import permutations


def curve(correct_in_order: Sequence[bool]) -> list[Fraction]:
    """Selective risk after each image of an order."""
    return [
        Fraction(sum(1 for right in correct_in_order[:k] if not right), k) for k in range(1, len(correct_in_order) + 1)
    ]


def mean_curve(confidence: Sequence[float], correct: Sequence[bool]) -> list[Fraction]:
    """Mean of the curves of every order in which confidence never rises; for a handful of images only."""
    n = len(confidence)
    found = []
    for order in permutations(range(n)):
        if all(confidence[order[k]] >= confidence[order[k + 1]] for k in range(n - 1)):
            found.append(curve([correct[i] for i in order]))
    return [sum((one[k] for one in found), Fraction(0)) / len(found) for k in range(n)]


def aurc(confidence: Sequence[float], correct: Sequence[bool]) -> Fraction:
    risks = mean_curve(confidence, correct)
    return sum(risks, Fraction(0)) / len(risks)


def best_aurc(correct: Sequence[bool]) -> Fraction:
    """The least area of any order."""
    return min(sum(curve(order), Fraction(0)) / len(correct) for order in set(permutations(correct)))


def augrc(confidence: Sequence[float], correct: Sequence[bool]) -> Fraction:
    """Over all pairs of images: the first is wrong and accepted at the second's threshold, a tie being half."""
    n, total = len(confidence), Fraction(0)
    for i in range(n):
        for j in range(n):
            if not correct[i] and confidence[i] >= confidence[j]:
                total += 1 if confidence[i] > confidence[j] else Fraction(1, 2)
    return total / n**2


def auroc(confidence: Sequence[float], correct: Sequence[bool]) -> Fraction:
    """Share of (right, wrong) pairs in which the right one is surer; a tie is half a pair."""
    pairs = [
        (confidence[i], confidence[j])
        for i in range(len(correct))
        for j in range(len(correct))
        if correct[i] and not correct[j]
    ]
    return sum(
        (Fraction(1) if a > b else Fraction(1, 2) if a == b else Fraction(0) for a, b in pairs), Fraction(0)
    ) / len(pairs)
