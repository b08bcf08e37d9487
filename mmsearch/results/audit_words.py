"""What is known of pruning, in words: what it saved, and how often it was wrong."""

from __future__ import annotations

from mmsearch.search.audit import Audit
from mmsearch.search.progress import duration, plural


def saved_in_words(audit: Audit) -> str:
    """What pruning did: how much it saved, by an estimate, and what its audit cost."""
    text = f"ended {plural(audit.pruned, 'trial')} early" if audit.pruned else "ended no trial"
    if audit.pruned and audit.saved is not None:
        text += f", which saved about {duration(audit.saved)} of training"
    elif audit.pruned:
        text += "; how much that saved only a complete trial can tell"
    return text + (f"; audits took {duration(audit.cost)}" if audit.audited else "")


def wrong_in_words(audit: Audit) -> str:
    """How often pruning was wrong, each share with Wilson's interval."""
    if not audit.audited:
        return "no trial was audited"
    trials = "the one trial" if audit.audited == 1 else f"{audit.audited} trials"
    better = "none had a complete trial before it to be compared with"
    if audit.judged:
        judged = f" of the {audit.judged} with complete trials before" if audit.judged < audit.audited else ""
        better = (
            f"{_share(audit.better, audit.judged)}{judged} ended better than the best trial there was at that moment"
        )
    return (
        f"of {trials} that would have been pruned but trained to the end, {better}, and "
        f"{_share(audit.among_best, audit.audited)} ended among the best tenth of all complete ones"
    )


def _share(some: int, of: int) -> str:
    from mmsearch.results.statistics import wilson  # here, since scipy takes half a second to import

    low, high = wilson(some, of)
    return f"{some} (95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
