"""The names of an algorithm's metrics, found by asking it for them on random numbers, without a model."""

from __future__ import annotations

from unified.parts import Algorithm
from unified.settings import Settings


def metric_names(algorithm: Algorithm, settings: Settings) -> frozenset[str] | None:
    """What `metrics` of an algorithm gives under these settings, by name; loads torch.

    It sees every field that there is, and then only those that it reads: a name that hangs on a field counts as given.
    None where the names hang on the numbers, or where it does not fit made-up ones: then nobody knows before it runs.
    """
    import torch

    from unified.batch import Batch
    from unified.contract import Subject, credited, statistics_of
    from unified.contract_data import ALWAYS, columns_for

    if algorithm.metrics is None:
        return frozenset()
    subject = Subject(algorithm, settings)
    found = []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for seed in (0, 1):  # rewards that all differ, and rewards of 0 and 1
                term, fields = subject.term(), subject.fields(seed)
                columns = columns_for(settings, len(fields["group"]))
                whole = credited(term, Batch(fields, columns))
                known = statistics_of(term, whole)
                read = ALWAYS | term.reads | term.credit_reads | {"advantage", "returns", *term.aggregations}
                least = Batch({k: v for k, v in whole.fields.items() if k in read}, columns)
                found.append(frozenset(name for batch in (whole, least) for name in term.measured(batch, known)))
    except Exception:  # whatever a stranger's function says to made-up numbers is no mistake of the recipe
        return None
    return found[0] if len(set(found)) == 1 else None
