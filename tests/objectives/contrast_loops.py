"""The forms of soft contrast written as loops over patients, in plain Python numbers."""

import math

Matrix = list[list[float]]


def targets_by_loop(gowers: Matrix, coverage: Matrix, softness: float, temperature: float) -> Matrix:
    count = len(gowers)
    rows = []
    for i in range(count):
        shares = [math.exp(gowers[i][j] / temperature) if j != i and coverage[i][j] > 0 else 0.0 for j in range(count)]
        total = sum(shares)
        own = [float(j == i) for j in range(count)]
        soft = [(1 - softness) * o + softness * s / total for o, s in zip(own, shares, strict=True)] if total else own
        rows.append(soft)
    return rows


def softmax_by_loop(logits: Matrix, targets: Matrix) -> float:
    count = len(logits)
    total = 0.0
    for table in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i in range(count):
            partition = math.log(sum(math.exp(score) for score in table[i]))
            for j in range(count):
                if targets[i][j] > 0:
                    total += targets[i][j] * (math.log(targets[i][j]) - (table[i][j] - partition)) / count
    return total / 2


def sigmoid_by_loop(logits: Matrix, targets: Matrix) -> float:
    total = 0.0
    for i, row in enumerate(logits):
        for j, score in enumerate(row):
            q, p = targets[i][j], 1 / (1 + math.exp(-score))
            total += q * math.log(q / p) if q > 0 else 0.0
            total += (1 - q) * math.log((1 - q) / (1 - p)) if q < 1 else 0.0
    return total / len(logits)


def weighted_by_loop(logits: Matrix, weights: Matrix) -> float:
    count = len(logits)
    total = 0.0
    for table in (logits, [list(column) for column in zip(*logits, strict=True)]):
        for i in range(count):
            others = sum(weights[i][k] * math.exp(table[i][k]) for k in range(count) if k != i)
            total -= math.log(math.exp(table[i][i]) / (math.exp(table[i][i]) + others))
    return total / (2 * count)
