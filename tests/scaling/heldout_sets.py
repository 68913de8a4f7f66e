"""The held-out budgets of the public tables: one rule per table, and every series it holds.

Rules follow the sizes and budgets that each publication varied, not what fits best: large models or the largest budgets
are held out. Every series is (N, D, loss, mask of the runs held out).
"""

import numpy as np


def chinchilla_epoch(table):
    kept = table["epoch_dropped_top5"] == 0
    N, D, loss = (table[name][kept] for name in ("params", "tokens", "loss"))
    return [("all", N, D, loss, 6 * N * D > 4.0001e20)]


def gadre_overtraining(table):
    series = []
    for dataset in np.unique(table["dataset"]):
        for column in ("loss_openlm", "loss_c4_val", "loss_paloma_c4_en", "loss_paloma_redpajama"):
            rows = (table["dataset"] == dataset) & np.isfinite(table[column])
            N, D, loss = (table[name][rows] for name in ("params", "tokens", column))
            series.append((f"{dataset} {column}", N, D, loss, N > 1e9))
    return series


def kempner_loss_to_loss(table):
    series = []
    columns = [name for name in table if name.startswith("loss_")] + ["own_val_loss"]
    for data in np.unique(table["data"]):
        for column in columns:
            rows = (table["data"] == data) & np.isfinite(table[column])
            N, D, loss, flops = (table[name][rows] for name in ("params", "tokens", column, "flops"))
            series.append((f"{data} {column}", N, D, loss, flops > 5e19))
    return series


def best_of_cells(table, loss, *keys):
    """Row numbers: the lowest loss of every cell."""
    best = {}
    for k in range(len(table[loss])):
        cell = tuple(float(table[key][k]) for key in keys)
        if np.isfinite(table[loss][k]) and (cell not in best or table[loss][k] < table[loss][best[cell]]):
            best[cell] = k
    return np.array(sorted(best.values()))


def misfitting(table):
    rows = best_of_cells(table, "loss", "params", "tokens")
    rows = rows[table["tokens"][rows] >= 5 * table["params_no_embed"][rows]]
    N, D, loss = (table[name][rows] for name in ("params", "tokens", "loss"))
    return [("best learning rate", N, D, loss, N > 0.3e9)]


def steplaw_dense_lr_bs(table):
    rows = best_of_cells(table, "smooth_loss", "params_no_embed", "tokens")
    N, D, loss = (table[name][rows] for name in ("params_no_embed", "tokens", "smooth_loss"))
    return [("best of each cell", N, D, loss, N > 1e9)]


def gemstones(table):
    aspect = table["width"] / table["depth"]
    rows = (aspect >= 20) & (aspect <= 100) & (table["tokens"] > 9.9e9)
    N, D, loss = (table[name][rows] for name in ("params", "tokens", "train_loss"))
    train = (N <= 1.2e9) & (D <= 150.2e9)
    test = (N > 1.2e9) & (D > 300e9)
    used = train | test
    return [("usual shapes", N[used], D[used], loss[used], test[used])]


def llama3_isoflop_digitised(table):
    large = table["flops"] > 2e21
    # Their flag drops every run of the two largest budgets, for another purpose.
    rows = (table["outlier"] == "False") | large
    N, D, loss = (table[name][rows] for name in ("params", "tokens", "nll_arc_bits_per_char"))
    return [("ARC", N, D, loss, large[rows])]


def kyotakano_llm_example(table):
    order = np.argsort(table["flops"], kind="stable")
    test = np.zeros(len(order), dtype=bool)
    test[order[int(0.9 * len(order)) :]] = True
    return [("all", table["params"], table["tokens"], table["loss"], test)]


def datablations(table):
    rows = (table["epochs"] <= 1.0) & (table["seed"] == 0)
    N, D, loss = (table[name][rows] for name in ("params", "tokens", "loss"))
    return [("one epoch", N, D, loss, N > 4e9)]


def _mixlaws(table, num_sources):
    targets = np.mean([table[name] for name in table if name.startswith("loss_")], axis=0)
    mixtures = np.stack([table[f"p{k}"] for k in range(1, num_sources + 1)], axis=-1)
    series = []
    for mixture in np.unique(mixtures, axis=0):
        rows = (mixtures == mixture).all(axis=-1)
        N, D, loss = table["params_no_embed"][rows], table["tokens"][rows], targets[rows]
        if (N > 5e8).any() and len(np.unique(N[N < 5e8])) >= 2:
            series.append((" ".join(f"{share:g}" for share in mixture), N, D, loss, N > 5e8))
    return series


def mixlaws_5domain(table):
    return _mixlaws(table, 5)


def mixlaws_redpajama(table):
    return _mixlaws(table, 7)


SETS = {
    function.__name__: function
    for function in (
        chinchilla_epoch, gadre_overtraining, kempner_loss_to_loss, misfitting, steplaw_dense_lr_bs, gemstones,
        llama3_isoflop_digitised, kyotakano_llm_example, datablations, mixlaws_5domain, mixlaws_redpajama,
    )
}  # fmt: skip
