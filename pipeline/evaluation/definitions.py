"""Definitions of the numbers of a report, for readers who do not know the code."""

from pipeline.config import EvaluationConfig
from pipeline.text import counted


def of(config: EvaluationConfig) -> dict[str, str]:
    """Measure, or other term of the report → its meaning."""
    k, bar = config.cutoff, config.relevant_from
    return {
        f"ndcg@{k}": f"Discounted cumulative gain of the first {counted(k, 'document')}, divided by that of the best "
        "order of all judged documents of the query. The gain is the grade (linear), the discount 1/log2(rank + 1); "
        f"trec_eval's ndcg_cut_{k}.",
        f"ndcg_exp@{k}": "The same with gain 2^grade − 1 (exponential), which makes high grades count for more.",
        "mrr": f"1 / rank of the first document of grade {bar} or more; 0 when there is none.",
        "map": f"Mean over all documents of grade {bar} or more of the precision at their rank; 0 if not returned.",
        f"recall@{k}": f"Share of all documents of grade {bar} or more that stand in the first {k}.",
        "recall": "The same share in the whole list, as deep as the pool: what no order of it can pass.",
        "pairwise": "Share of the pairs of judged documents of one query with different grades that are in the right "
        "order; ties count half, a document that is not returned stands last. Only over queries that have such pairs.",
        f"judged@{k}": f"Share of the first {counted(k, 'document')} that have a judgment. Where it differs between "
        "systems, the one with less is underrated.",
        "queries": "Every judged query counts. One that a system returns nothing for scores 0; so does one without a "
        "relevant document, as in trec_eval. A document without a judgment has grade 0.",
        "ties": "Scores are compared as 32-bit floats; of equal ones the greater document id stands first, as in "
        "trec_eval.",
        "interval": "95 % interval of the mean over queries: at each end the outer one of Student's t interval and "
        f"the BCa bootstrap interval of {config.bootstrap:,} resamples, seed {config.seed}. A single query says "
        "nothing about others, so its interval is the measure's whole range.",
        "p": f"Two-sided paired sign-flip permutation test, {config.bootstrap:,} flips; 'Holm' is corrected for "
        "comparing several systems with the baseline. A system is called better or worse when its interval lies on "
        "one side of 0 and p is at most 0.05.",
        "detectable": "The smallest true difference that these queries show in four of five trials; a smaller "
        "difference may be there and not be seen.",
    }
